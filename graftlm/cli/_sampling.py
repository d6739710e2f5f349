"""The sampling options that chat and generate share."""

from __future__ import annotations

from typing import Annotated

import typer

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; higher is more varied.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens only; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share; 1: from all.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens that occurred become less likely.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer. Repeatable.")]

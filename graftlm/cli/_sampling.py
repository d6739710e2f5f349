"""The sampling options that chat and generate share, and what their files and texts say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.adapters.model import AdaptedModel
    from graftlm.generation.requests import SamplingSettings

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; higher is more varied.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens only; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share; 1: from all.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens that occurred become less likely.")]
PresencePenalty = Annotated[float, typer.Option(help="Taken off the logit of tokens that the answer has; 0: off.")]
FrequencyPenalty = Annotated[float, typer.Option(help="The same, times how often the answer has them; 0: off.")]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKEN=BIAS", help="Added to a token's logit, by id or text: 13=2.5, ' cat'=-inf. Repeatable."
    ),
]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer. Repeatable.")]
JsonSchema = Annotated[Path | None, typer.Option(help="A file: answers are JSON that meets its JSON schema.")]
Regex = Annotated[str | None, typer.Option(help="Answers match this regular expression, from begin to end.")]
Grammar = Annotated[Path | None, typer.Option(help="A file: answers follow its Lark grammar.")]

Biases = list[tuple[str, float]]  # a token's id or text, and what is added to its logit


def parse_biases(given: Sequence[str] | None) -> Biases:
    """The values of ``--logit-bias``.

    Raises:
        UserError: one has another form.
    """
    found = []
    for text in given or ():
        token, equals, bias = text.rpartition("=")
        try:
            number = float(bias)
        except ValueError:
            number = None
        if not (token and equals) or number is None:
            raise UserError(
                f"--logit-bias is {text!r}; allowed: TOKEN=BIAS, a token's id or text and a number",
                hint="Such as 13=2.5 or ' cat'=-inf, which forbids the token.",
            )
        found.append((token, number))
    return found


def token_biases(biases: Biases, model: AdaptedModel) -> tuple[tuple[int, float], ...]:
    """Biases by token id.

    Raises:
        UserError: there is no such token, or a text is not one token.
    """
    return tuple((_token(token, model), bias) for token, bias in biases)


def _token(text: str, model: AdaptedModel) -> int:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if text.isdecimal():
        if int(text) >= model.vocabulary:
            last = f"{model.vocabulary - 1:,}"
            raise UserError(f"--logit-bias names the token {text}, but {model.name} has the tokens 0 to {last}")
        return int(text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        parts = ", ".join(f"{tokenizer.decode([one])!r} ({one})" for one in ids[:6]) + (", …" if len(ids) > 6 else "")
        raise UserError(
            f"--logit-bias names {text!r}, which is {len(ids)} tokens for {model.name}: {parts}",
            hint="Give one token by its id. A word in a text mostly has its space before it: ' cat'.",
        )
    return int(ids[0])


def read_schema(path: Path | None) -> str | None:
    """The text of ``--json-schema``.

    Raises:
        UserError: the file cannot be read, or is no JSON.
    """
    text = read_constraint(path, "--json-schema")
    try:
        json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"--json-schema {path}: broken JSON: {error}", hint="It must hold one JSON schema.") from error
    return text


def read_constraint(path: Path | None, option: str) -> str | None:
    """The text of an option's file.

    Raises:
        UserError: the file cannot be read, or has nothing in it.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: not UTF-8: byte {error.start}", hint="Save the file as UTF-8.") from error
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{option} {path}: {reason}") from error
    if not text.strip():
        raise UserError(f"{option} {path}: the file is empty")
    return text


def check_constraint(sampling: SamplingSettings, model: AdaptedModel) -> None:
    """See that the answer's form can be met, before anything is asked for.

    Raises:
        UserError: it is wrong in itself, or nothing can meet it.
    """
    kind = sampling.constraint
    if kind is None:
        return
    from graftlm.generation.constraints import constraints_for

    assert model.tokenizer is not None
    constraints_for(model.tokenizer, model.vocabulary).compile(kind, getattr(sampling, kind), ())

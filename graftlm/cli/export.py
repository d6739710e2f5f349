"""graftlm export: a merged copy of the base as a transformers folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli.console import as_size, console
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.evaluation.speakers import Opened


def export(
    adapters: Annotated[list[Path], typer.Argument(help="Adapter folders; several are merged as a stack.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    base: Annotated[str | None, typer.Option(help="The base, if not the one that the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the loaded precision.")] = "auto",
    rank: Annotated[
        int | None,
        typer.Option(help="A DyLoRA cut to this rank, written as a plain LoRA folder instead of a merged base."),
    ] = None,
    peft: Annotated[
        bool, typer.Option("--peft", help="Write the adapter as a folder that peft loads, instead of a merged base.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
) -> None:
    """Write the base with adapters merged in, as a folder that transformers and others load as a plain model.

    FOLDER@4 merges a DyLoRA at rank 4.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists already", hint="Choose another folder, or add --force to replace it.")
    from graftlm.evaluation.speakers import check_folders, open_adapters

    check_folders(adapters)
    from graftlm.adapters.merge import export_merged
    from graftlm.base.loading import DTYPES
    from graftlm.errors import unknown_name

    if dtype not in ("auto", *DTYPES):
        raise unknown_name("dtype", dtype, ["auto", *DTYPES])
    opened = open_adapters(adapters, base)
    if len(opened.adapters) > len(adapters):
        names = ", ".join(speaker.label for speaker in opened.adapters)
        raise UserError(
            f"{adapters[0]} holds several adapters: {names}; they were not trained to be merged together",
            hint=f"Name one: graftlm export {adapters[0]}/adapters/{opened.adapters[0].label} --out {out}",
        )
    model = opened.model
    if peft and rank is None:
        _write_for_peft(opened, out)
        return
    if rank is not None:
        _write_cut(opened, rank, out)
        return
    stack = tuple(dict.fromkeys(name for speaker in opened.adapters for name in speaker.stack))
    with console.status("merging and checking …"):
        check = export_merged(model, stack, out, dtype=DTYPES.get(dtype))
    size = sum(path.stat().st_size for path in out.iterdir())
    merged = " and ".join(stack)
    console.print(f"wrote {out} ({as_size(size)}): {model.name} with {merged} merged in", markup=False)
    console.print(
        f"checked: largest logit difference to the unmerged adapters {check.largest_difference:.3g} "
        f"({check.relative:.2g} of the largest logit) on {check.tokens} tokens"
    )
    console.print("\nload it:", markup=False)
    loader = "AutoModelForCausalLM" if model.kind == "decoder" else type(model.base).__name__
    console.print(f"  {loader}.from_pretrained({str(out)!r})", markup=False, soft_wrap=True)
    if model.kind == "decoder":
        console.print(f"  {shlex.join(['graftlm', 'chat', '--base', str(out)])}", markup=False, soft_wrap=True)


def _write_for_peft(opened: Opened, out: Path) -> None:
    """One adapter in peft's form.

    Raises:
        UserError: there are several, or peft has no form for it; nothing is written then.
    """
    if len(opened.adapters) != 1:
        raise UserError("--peft writes one adapter", hint="Name one adapter's folder.")
    name = opened.adapters[0].stack[-1]
    opened.model.save(name, out, peft=True)
    console.print(f"wrote {out}: {name}, as peft loads it", markup=False)


def _write_cut(opened: Opened, rank: int, out: Path) -> None:
    """One adapter cut to a rank, as a folder of its own."""
    if len(opened.adapters) > 1:
        raise UserError("--rank is for one adapter", hint="Name its folder alone.")
    name = f"{opened.adapters[0].label}@{rank}"
    opened.model.save(name, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    console.print(f"wrote {out} ({as_size(size)}): {opened.adapters[0].label} cut to rank {rank}", markup=False)
    console.print("\ntalk to it:", markup=False)
    console.print(f"  {shlex.join(['graftlm', 'chat', str(out)])}", markup=False, soft_wrap=True)

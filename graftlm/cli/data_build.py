"""``graftlm data build``: a set from its recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli.console import as_duration, console, errors
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.sets import SetCard

PAUSE = 10.0  # seconds between two lines of progress where there is no terminal


def build_command(
    recipe: Annotated[Path, typer.Argument(help="A YAML file: sources, filters, mixture, splits, seed.")],
    out: Annotated[Path, typer.Option(help="The folder of the set; a set that is there is replaced.")],
    folder: Annotated[
        Path | None, typer.Option(help="What the recipe's paths are relative to. Default: the recipe's own folder.")
    ] = None,
) -> None:
    """Read, filter, split and mix instances into a set, which the same recipe and files give again bit for bit."""
    from graftlm.data.sets import is_set, read_card, refuse_to_replace
    from graftlm.recipe.problems import RecipeError
    from graftlm.recipe.set_recipe import load_set_recipe
    from graftlm.runs.build_set import build_set
    from graftlm.runs.set_sources import changed_sources, list_sources

    place = (folder or recipe.expanduser().parent).expanduser().resolve()
    try:
        values, text = load_set_recipe(recipe, folder=place)
    except RecipeError as error:
        if folder is not None or not is_set(recipe.parent):
            raise
        raise RecipeError(str(recipe), error.problems, hint=_folder_hint(recipe)) from error
    earlier = {where: read_card(where) for where in dict.fromkeys([out, recipe.parent]) if is_set(where)}
    now = list_sources(values, place) if earlier else []
    if out in earlier:
        refuse_to_replace(out, [place / source.path for source in now])
    for where, card in earlier.items():
        for name in changed_sources(card, now):
            errors.print(f"[yellow]note:[/] {name} is not what it was when {where} was built")
    begin = time.monotonic()
    with _progress() as progress:
        built = build_set(values, out, folder=place, text=text, overwrite=True, progress=progress)
    _print_card(built, out)
    console.print(f"built in {as_duration(time.monotonic() - begin)}; what is in it: {out / 'card.md'}", markup=False)
    for where, card in earlier.items():
        same = "the same rows, bit for bit, as" if card.sha256 == built.sha256 else "other rows than"
        console.print(f"{same} the set that was in {where}", markup=False, soft_wrap=True)
        then, now_made = card.notes.get("versions"), built.notes["versions"]
        if card.sha256 != built.sha256 and then not in (None, now_made):
            console.print(f"that was made with {then}, this with {now_made}", markup=False, soft_wrap=True)


def _folder_hint(recipe: Path) -> str:
    """What to say where the recipe that lies in a set finds its files nowhere near."""
    from graftlm.recipe.set_recipe import load_set_recipe

    said = "This recipe lies in the set that was built of it, and its paths are relative to where it was built from: "
    for place in (Path.cwd(), *recipe.resolve().parent.parents):
        try:
            load_set_recipe(recipe, folder=place)
        except UserError:
            continue
        return f"{said}--folder {'.' if place == Path.cwd() else place}"
    return f"{said}--folder FOLDER"


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """How many instances were read and how fast: live in a terminal, a line now and then elsewhere."""
    begin = shown = time.monotonic()

    def words(number: int) -> str:
        return f"{number:,} instances read · {number / max(time.monotonic() - begin, 1e-9):,.0f} a second"

    if console.is_terminal:
        with console.status("reading") as status:
            yield lambda number: status.update(words(number))
        return

    def show(number: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > PAUSE:
            shown = time.monotonic()
            console.print(words(number))

    yield show


def _print_card(card: SetCard, out: Path) -> None:
    from graftlm.data.sets import kept_but

    splits = ", ".join(f"{name} {rows:,}" for name, rows in card.splits.items())
    console.print(f"{out}: {card.rows:,} instances ({splits})", markup=False, soft_wrap=True)
    for task, taken in card.notes["mixture"].items():
        line = f"  {task}: {taken['rows']:,} rows, {taken['quota']:,} of {taken['available']:,}"
        console.print(line, markup=False, soft_wrap=True)
    for reason, number in sorted(card.dropped.items(), key=lambda item: -item[1]):
        places = ", ".join(card.examples.get(reason, [])[:3])
        console.print(f"left out {number:,}: {reason}" + (f" ({places})" if places else ""), markup=False)
    for line in kept_but(card):
        console.print(f"kept {line}", markup=False, soft_wrap=True)
    if "contradictions" in card.notes:
        console.print("  filters: {contradictions: true} leaves rows with such an input out", markup=False)

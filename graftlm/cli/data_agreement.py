"""``graftlm data agreement``: how far annotators agree, and where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftlm.cli.console import console
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.agreement import Agreement, AgreementReport, Disagreement

SHOWN = 70  # characters of a text in one line


def agreement_command(
    files: Annotated[list[str], typer.Argument(help="Files, folders or sets of preference rows with annotators.")],
    level: Annotated[
        Literal["nominal", "ordinal", "interval"] | None,
        typer.Option(help="What counts as far apart. Default: nominal for labels, ordinal for ranks and ratings."),
    ] = None,
    rows: Annotated[int, typer.Option("--list", min=0, help="How many disagreements are shown of each criterion.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A JSONL file for all disagreements.")] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(help='The definition of a criterion of your own: --criterion polite="…". Repeatable.'),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a set.")] = None,
) -> None:
    """Krippendorff's alpha by criterion, and the rows on which annotators disagree."""
    from graftlm.data.agreement import agreement
    from graftlm.data.prepare import load_instances

    known = parse_criteria(criterion or [], files)
    found = load_instances(files, split=split)
    report = agreement(found.items, level)
    if not report.verdicts:
        raise UserError(
            f"{', '.join(files)}: read as {found.format}: {len(found.items):,} instances, and none is a preference row",
            hint="Forms of preference rows: docs/how-to/preference-data.md.",
        )
    _print_report(report, sum(found.counts.dropped.values()))
    print_definitions((part.criterion for part in report.parts), known)
    for part in report.parts:
        _print_disagreements(part, rows)
    if out is not None:
        every = [as_json(each) for part in report.parts for each in part.disagreements]
        out.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in every), encoding="utf-8")
        console.print(f"{out}: {len(every):,} disagreements", markup=False, soft_wrap=True)


def parse_criteria(pairs: list[str], files: list[str]) -> dict[str, str]:
    """The definitions that ship, those that the cards of sets hold, and those of ``--criterion name=definition``.

    Raises:
        UserError: there is no "=", or no definition.
    """
    from graftlm.data.criteria import definitions
    from graftlm.data.sets import is_set, read_card

    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise UserError(
            f"--criterion {wrong}: expected NAME=DEFINITION", hint='--criterion polite="Greets and thanks."'
        )
    written: dict[str, str] = {}
    for file in files:
        written |= read_card(file).notes.get("criteria", {}) if is_set(Path(file)) else {}
    return definitions(written | dict(pair.split("=", 1) for pair in pairs))


def print_definitions(names: Any, known: dict[str, str]) -> None:
    """What each criterion means; a note where nobody has said."""
    from graftlm.data.criteria import undefined

    listed = sorted({name for name in names if name})
    for name in listed:
        if name in known:
            console.print(f"{name}: {known[name]}", style="dim", markup=False, soft_wrap=True)
    if missing := undefined(listed, known):
        given = f'--criterion {missing[0]}="…"'
        console.print(
            f"no definition is known of {', '.join(missing)}; write one: {given}", markup=False, soft_wrap=True
        )


def _print_report(report: AgreementReport, dropped: int) -> None:
    from rich.table import Table

    from graftlm.data.agreement import WHAT
    from graftlm.data.criteria import WHOLE

    table = Table("criterion", "judged", "alpha", "", "same", "units", "by one alone", "annotators", box=None)
    for part in report.parts:
        same = "" if part.same is None else f"{part.same:.1%}"
        alpha = "" if part.alpha is None else f"{part.alpha:.3f}"
        counts = [f"{number:,}" for number in (part.units, part.alone, part.annotators)]
        table.add_row(part.criterion or WHOLE, WHAT[part.kind], alpha, _word(part), same, *counts)
    if report.parts:
        console.print(table)
    notes = {
        "name no annotator and do not count": report.unnamed,
        "judge again what the same annotator has judged; the first counts": report.repeated,
        "of these say something else than before": report.changed,
    }
    console.print(f"verdicts: {report.verdicts:,}; rows dropped: {dropped:,}")
    for text, number in notes.items():
        if number:
            console.print(f"{number:,} {text}", markup=False, soft_wrap=True)


def _word(part: Agreement) -> str:
    from graftlm.data.agreement import FAIR, GOOD

    if part.alpha is None:
        return part.reason
    return "good" if part.alpha >= GOOD else "tentative" if part.alpha >= FAIR else "low"


def _print_disagreements(part: Agreement, rows: int) -> None:
    from graftlm.data.agreement import WHAT
    from graftlm.data.criteria import WHOLE

    if not part.disagreements or not rows:
        return
    title = f"\n{part.criterion or WHOLE}, {WHAT[part.kind]}: {len(part.disagreements):,} disagreements"
    console.print(title, style="bold", markup=False)
    for each in part.disagreements[:rows]:
        console.print(f"  {_line(each.prompt)}", markup=False, soft_wrap=True)
        for name, answer in zip("AB", each.answers, strict=False):
            console.print(f"    {name}: {_line(answer)}", markup=False, soft_wrap=True)
        for said in each.said:
            place = f"{Path(said.source).name}:{said.row}"
            console.print(f"    {said.annotator}: {_value(each, said.value)} ({place})", markup=False, soft_wrap=True)
    if len(part.disagreements) > rows:
        console.print(f"  … {len(part.disagreements) - rows:,} more: --list N, or --out FILE", style="dim")


def _value(each: Disagreement, value: float) -> str:
    if each.kind == "ranks":
        return {1: "A is better", -1: "B is better"}.get(int(value), "a tie")
    return ("good" if value else "bad") if each.kind == "labels" else f"{value:g}"


def _line(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= SHOWN else whole[: SHOWN - 1] + "…"


def as_json(each: Disagreement) -> dict[str, Any]:
    """A disagreement as a row."""
    said = [
        {"annotator": one.annotator, "value": _value(each, one.value), "source": one.source, "row": one.row}
        for one in each.said
    ]
    texts = {"criterion": each.criterion, "judged": each.kind, "prompt": each.prompt, "answers": list(each.answers)}
    return {**texts, "said": said}

"""A file for people to write demonstrations into, and what is checked when it comes back."""

from __future__ import annotations

import csv
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.data.collecting.duplicates import normal
from graftlm.data.collecting.folder import ASKED, SPLITS, prompt_id, read_prompts
from graftlm.data.collecting.personal import find
from graftlm.data.collecting.use_cases import use_cases
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.readers import Row, read_rows
from graftlm.data.sets import SetCard, describe_source, write_set
from graftlm.errors import UserError

COLUMNS = ("id", "language", "use_case", "use_case_by_hand", "prompt", "demonstration")
EXAMPLES = 5


@dataclass
class Checked:
    """An account of a file that came back: every row is ``good`` or has a problem, and a missing row is one too.

    ``problems`` counts by reason, ``examples`` gives some rows ("row 12 (id)") of each."""

    asked: int = 0
    read: int = 0
    good: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)

    def problem(self, reason: str, place: str) -> None:
        self.problems[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(place)


def check_place(path: Path) -> None:
    """Whether demonstrations may be asked for in ``path``.

    Raises:
        UserError: another suffix than .csv or .jsonl, or a file that is there, which may hold people's work.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path}: demonstrations go into a .csv or a .jsonl file")
    if path.exists():
        hint = "Name another, or move it away."
        raise UserError(f"{path}: the file is there, and may hold demonstrations", hint=hint)


def write_sheet(folder: Path, path: Path, most: int | None) -> int:
    """Write prompts of a collection into ``path``, each with an empty demonstration; their number.

    ``most`` prompts are drawn by their ids, which are hashes: the same ones each time.
    """
    ids: Iterable[str] = (row["id"] for row in read_prompts(folder))
    chosen = set(ids if most is None else heapq.nsmallest(most, ids))
    rows = (row for row in read_prompts(folder) if row["id"] in chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark makes spreadsheets read UTF-8
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(_line(row).values() for row in rows)
    else:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(_line(row), ensure_ascii=False) + "\n" for row in rows)
    (folder / ASKED).write_text("".join(f"{one}\n" for one in sorted(chosen)), encoding="utf-8")
    return len(chosen)


def _line(row: Row) -> dict[str, Any]:
    by_hand = row["use_case"] if row["rule"] == "by hand" else ""
    line = {key: row.get(key, "") for key in COLUMNS}
    return {**line, "use_case_by_hand": by_hand, "demonstration": ""}


@dataclass(frozen=True, slots=True)
class Good:
    """A demonstration without a problem: the prompt as collected, the answer, the use case, the row in the file."""

    prompt: Row
    answer: str
    use_case: str
    row: int


def check_sheet(
    path: str | Path, folder: str | Path, out: str | Path | None = None, out_set: str | Path | None = None
) -> Checked:
    """Check a file that came back against the collection in ``folder``, and write its good rows.

    ``out`` becomes a folder with a JSONL of messages for each split, ``out_set`` a set with the same splits. Rows
    with a problem are counted and left out; nothing is written where none is good. What an earlier check wrote there
    is replaced.

    Raises:
        UserError: the file lacks a column, the folder asked for no demonstrations, or ``out_set`` is another folder.
    """
    asked_file = Path(folder) / ASKED
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder", hint="Name the one that data collect wrote.")
    if not asked_file.is_file():
        raise UserError(f"{folder}: no demonstrations were asked for here", hint="data collect … --demonstrations FILE")
    asked = set(asked_file.read_text(encoding="utf-8").split())
    prompts = {row["id"]: row for row in read_prompts(folder) if row["id"] in asked}
    checked = Checked(asked=len(asked))
    good = list(_good(Path(path), prompts, checked))
    checked.good = len(good)
    checked.splits.update(one.prompt["split"] for one in good)
    if not good:
        return checked  # empty files would look as if there were something to train on
    if out is not None:
        _write_chats(Path(out), good)
    if out_set is not None:
        card = SetCard(sources=[describe_source(path, name=Path(path).name)], dropped=dict(checked.problems))
        splits = {one.row: one.prompt["split"] for one in good}
        rows = (_instance(one, Path(path).name) for one in good)
        write_set(out_set, rows, card, split=lambda one: splits[one.row], overwrite=True)
    return checked


def _write_chats(folder: Path, good: list[Good]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = [json.dumps(_chat(one), ensure_ascii=False) + "\n" for one in good if one.prompt["split"] == split]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def _chat(one: Good) -> dict[str, Any]:
    messages = [{"role": "user", "content": one.prompt["prompt"]}, {"role": "assistant", "content": one.answer}]
    return {
        "messages": messages,
        **{key: one.prompt[key] for key in ("id", "user", "language")},
        "use_case": one.use_case,
    }


def _instance(one: Good, source: str) -> Instance:
    messages = (Message("user", one.prompt["prompt"]), Message("assistant", one.answer))
    origin = Provenance(one.use_case, "demonstration", one.prompt["language"], user=one.prompt["user"])
    return Instance(messages, source, one.row, origin)


def _good(path: Path, prompts: dict[str, Row], checked: Checked) -> Iterator[Good]:
    """The rows without a problem; problems are counted."""
    seen = set[str]()
    known = use_cases()
    for number, row in read_rows(path):
        checked.read += 1
        absent = [name for name in ("id", "prompt", "demonstration") if name not in row]
        if absent:
            raise UserError(
                f"{path}: row {number} has no '{absent[0]}'; there are: {', '.join(row)}",
                hint="The columns of the file that data collect wrote must stay.",
            )
        one = str(row["id"]).strip()
        reason = _problem(row, one, prompts, seen)
        case = str(row.get("use_case_by_hand") or "").strip()
        if reason is None and case and case not in known:
            reason = "unknown use case by hand"
        seen.add(one)
        if reason is not None:
            checked.problem(reason, f"row {number} ({one})")
        else:
            yield Good(prompts[one], str(row["demonstration"]).strip(), case or prompts[one]["use_case"], number)
    for one in sorted(prompts.keys() - seen):
        checked.problem("missing row", one)


def _problem(row: Row, one: str, prompts: dict[str, Row], seen: set[str]) -> str | None:
    if one not in prompts:
        return "unknown id"
    if one in seen:
        return "id stands twice"
    if prompt_id(str(row["prompt"])) != one:
        return "changed prompt"
    answer = row["demonstration"]
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return "empty demonstration"
    if not isinstance(answer, str):
        return "demonstration is not text"
    if normal(answer) == normal(str(row["prompt"])):
        return "demonstration repeats the prompt"
    kinds = sorted({found.kind for found in find(answer)})
    return f"personal data in the demonstration: {', '.join(kinds)}" if kinds else None

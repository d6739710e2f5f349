"""The folder of a collection: names of its splits, ids of its prompts, reading it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from graftlm.data.readers import Row, read_rows
from graftlm.errors import UserError, nearest

SPLITS = ("train", "valid", "test")
TABLE = "use_cases.csv"
ASKED = "asked.txt"  # ids of the prompts that demonstrations are asked for
REPORT = "report.json"


def check_free(folder: Path) -> None:
    """Raises UserError where a collection would replace files in ``folder``, which it names."""
    own = (*(f"{split}.jsonl" for split in SPLITS), TABLE, REPORT)
    there = [name for name in own if (folder / name).exists()]
    if len(there) == len(own):
        raise UserError(
            f"{folder}: there is a collection already",
            hint="--overwrite (in Python: overwrite=True) replaces it; corrections by hand are kept by --corrections.",
        )
    if there:
        raise UserError(
            f"{folder}: {', '.join(there)} would be replaced, and there is no whole collection in that folder",
            hint="Choose another folder, or give --overwrite (in Python: overwrite=True).",
        )


def prompt_id(text: str) -> str:
    """The id of a prompt: a hash of its text, so it stays from run to run; white space does not count."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_prompts(folder: str | Path) -> Iterator[Row]:
    """The prompts of a collection, all splits.

    Raises:
        UserError: the folder is none of a collection.
    """
    for split in SPLITS:
        path = Path(folder) / f"{split}.jsonl"
        if not path.is_file():
            raise UserError(f"{folder}: there is no {split}.jsonl", hint="Name the folder that data collect wrote.")
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def read_corrections(path: str | Path, known: tuple[str, ...]) -> dict[str, str]:
    """Use cases set by hand, by prompt id: of every row (CSV or JSONL) whose ``use_case_by_hand`` is not empty.

    Raises:
        UserError: a column is missing, a use case is none of ``known``, or a prompt has two.
    """
    corrections: dict[str, str] = {}
    for number, row in read_rows(path):
        if "id" not in row or "use_case_by_hand" not in row:
            raise UserError(
                f"{path}: row {number} has no 'id' or no 'use_case_by_hand'; there are: {', '.join(row)}",
                hint=f"Correct the file {TABLE} that data collect wrote, or one with these two columns.",
            )
        name = str(row["use_case_by_hand"] or "").strip()
        if not name:
            continue
        case = next((case for case in known if case.lower() == name.lower()), None)
        if case is None:
            guess = nearest(name, list(known))
            raise UserError(
                f"{path}: row {number}: unknown use case '{name}'; there are: {', '.join(known)}",
                hint=f"Did you mean '{guess}'?" if guess else None,
            )
        if corrections.setdefault(str(row["id"]), case) != case:
            raise UserError(f"{path}: row {number}: prompt {row['id']} has two use cases by hand")
    return corrections

"""Single stories with a label, yes or no, of the shipped pairs: what a classifier learns from.

python benchmarks/alignment/singles.py [FOLDER]     (default: runs/judge)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

PARTS = ("train", "held_out")
Pair = dict[str, str]


def pairs(part: str) -> list[Pair]:
    """The shipped pairs of a part: ``prompt``, ``chosen``, ``rejected``."""
    text = (files("graftlm.demo") / "data" / "alignment" / f"preferences.{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def singles(rows: list[Pair]) -> Iterator[Pair]:
    for row in rows:
        for key, label in (("chosen", "yes"), ("rejected", "no")):
            yield {"prompt": row["prompt"], "story": row[key], "label": label}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/judge")
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in singles(pairs(part))]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{part}: {len(lines):,} stories")


if __name__ == "__main__":
    main()

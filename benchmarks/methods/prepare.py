"""Write the data of the method comparison: fixed parts of SST-2, TREC and CoLA as JSON lines.

    python benchmarks/methods/prepare.py [TASKS]

TASKS is the folder that holds sst2, trec and cola; left out: ../shared/data/tasks beside the repository. The files go
to benchmarks/methods/data: up to 10,000 rows to learn from each, and 420 held out, drawn from the tasks' own
development or test parts. The same rows are drawn every time.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
TASKS = HERE.parents[2] / "shared" / "data" / "tasks"
LEARNT, HELD_OUT = 10_000, 420
PARTS = {"sst2": ("train", "dev", "label"), "trec": ("train", "test", "coarse"), "cola": ("train", "dev_in", "label")}
WORDS = {  # TREC's classes as words that a language model has read
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


def draw(path: Path, key: str, number: int) -> list[dict[str, str]]:
    """At most ``number`` rows of a file, drawn by a fixed seed, each text once."""
    rows = {row["text"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    chosen = random.Random(0).sample(sorted(rows), min(number, len(rows)))
    return [{"text": text, "label": WORDS.get(rows[text][key], rows[text][key])} for text in chosen]


def main(tasks: Path) -> None:
    """Write train and held-out rows of every task; none is in both."""
    target = HERE / "data"
    target.mkdir(exist_ok=True)
    for task, (train, held_out, key) in PARTS.items():
        kept = draw(tasks / task / f"{held_out}.jsonl", key, HELD_OUT)
        texts = {row["text"] for row in kept}
        learnt = [
            row for row in draw(tasks / task / f"{train}.jsonl", key, LEARNT + HELD_OUT) if row["text"] not in texts
        ]
        for name, rows in (("train", learnt[:LEARNT]), ("held-out", kept)):
            path = target / f"{task}-{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows):,} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TASKS)

"""Part public files that come without a test set into training and test rows that share no text.

    python benchmarks/instruction_data/part_rows.py DATA OUT

Rows that have a text in common (a sentence on either side, a review, an article) stay on one side, so nothing that is
tested was seen in training. One side in five is for testing, drawn by a hash of the smallest text of each group.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TEST_SHARE = 0.2
# file → the columns whose texts may not stand on both sides
FILES = {
    "zh_en/tatoeba.jsonl.gz": ("en", "zh"),
    "simplification.jsonl": ("source", "target"),
    "chnsenticorp/all.jsonl.gz": ("text",),
}
ARTICLES = ("xquad/xquad.en.json", "xquad/xquad.zh.json")  # the same articles in the same order


def groups(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """For each row the smallest text of those that are tied to it, by one row or by a chain of rows."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for row in rows:
        roots = sorted({root(" ".join(row[column].casefold().split())) for column in columns})
        for other in roots[1:]:
            parent[other] = roots[0]
    return [root(" ".join(row[columns[0]].casefold().split())) for row in rows]


def is_test(key: str) -> bool:
    """The side of a group: the same on every machine."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number < TEST_SHARE * 2**64


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(place: Path, sides: dict[str, list[Any]], *, lines: bool) -> None:
    for side, rows in sides.items():
        path = place.with_name(f"{place.name}.{side}.{'jsonl' if lines else 'json'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "".join(f"{text}\n" for text in texts) if lines else json.dumps({"data": rows}, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
        print(f"{path}: {len(rows):,} {'rows' if lines else 'articles'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder with zh_en, xquad and so on")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for name, columns in FILES.items():
        rows = list(read_lines(options.data / name))
        sides: dict[str, list[Any]] = {"train": [], "test": []}
        for row, key in zip(rows, groups(rows, columns), strict=True):
            sides["test" if is_test(key) else "train"].append(row)
        write(options.out / name.split("/")[0].split(".")[0], sides, lines=True)
    for name in ARTICLES:
        articles = json.loads((options.data / name).read_text(encoding="utf-8"))["data"]
        sides = {"train": [], "test": []}
        for number, article in enumerate(articles):  # titles differ by language, numbers do not
            sides["test" if is_test(f"article {number}") else "train"].append(article)
        write(options.out / Path(name).stem, sides, lines=False)


if __name__ == "__main__":
    main()

"""Measure ``graftlm data collect`` on a generated log: what is found of what was planted, and what goes wrongly.

    python scripts/make_query_log.py log.jsonl && python scripts/check_query_log.py log.jsonl --out collected

Ends with 1 where less than 95 % of the personal data or not every duplicate is found. ``--details N`` shows misses.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.data.collecting.collect import Report, Settings, collect
from graftlm.data.collecting.folder import read_prompts
from graftlm.data.collecting.personal import find

BAR = 0.95
Row = dict[str, Any]


@dataclass
class Figures:
    """Planted, found and wrongly removed, by kind; pairs are (number, of how many)."""

    found: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    right: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    duplicates: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    leaked: list[Row] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    falsely: list[int] = field(default_factory=lambda: [0, 0])
    damaged: list[int] = field(default_factory=lambda: [0, 0])
    language: list[int] = field(default_factory=lambda: [0, 0])
    use_case: list[int] = field(default_factory=lambda: [0, 0])
    problems: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def recall(self) -> float:
        pairs = [pair for kind, pair in self.found.items() if not kind.endswith("alone")]
        return sum(a for a, _ in pairs) / max(sum(b for _, b in pairs), 1)

    @property
    def all_duplicates(self) -> bool:
        return all(found == planted for found, planted in self.duplicates.values())


def measure_personal(truth: list[Row], figures: Figures) -> None:
    """Recall: planted pieces found with all letters and digits. Precision: found pieces that touch a planted one."""
    for row in truth:
        text = row["text"]
        covered, spans = set[int](), []
        for one in row["personal"]:
            at = text.rfind(one["sentence"])
            begin = at + one["sentence"].index(one["value"])
            spans.append((begin, begin + len(one["value"]), one))
        pieces = find(text)
        for piece in pieces:
            covered |= set(range(piece.begin, piece.end))
        for begin, end, one in spans:
            kind = one["kind"] if one["announced"] else f"{one['kind']}, alone"
            whole = all(place in covered for place in range(begin, end) if text[place].isalnum())
            _count(figures.found[kind], whole)
            if not whole:
                figures.missed.append((kind, text[max(0, begin - 30) : end + 20]))
        for piece in pieces:
            touches = any(piece.begin < end and begin < piece.end for begin, end, _ in spans)
            _count(figures.right[piece.kind], touches)
            if not touches:
                figures.wrong.append((piece.kind, text[max(0, piece.begin - 20) : piece.end + 20]))
        if not row["personal"] and not row["problem"]:
            _count(figures.damaged, bool(pieces))


def measure_collection(truth: list[Row], folder: Path, report: Report, figures: Figures) -> None:
    """Duplicates that are gone, queries that went without being one, and personal data in what was kept."""
    kept = {row["row"]: row for row in read_prompts(folder)}
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in truth:
        if row["group"] is not None:
            groups[row["group"]].append(row)
        elif row["problem"]:
            _count(figures.problems, row["row"] not in kept)
        elif not str(row["user"]).startswith("heavy"):
            _count(figures.falsely, row["row"] not in kept)
        if row["row"] in kept:
            mine = kept[row["row"]]
            _count(figures.language, mine["language"] == row["language"])
            _count(figures.use_case, mine["use_case"] == row["use_case"])
            figures.leaked += [one for one in row["personal"] if one["announced"] and one["value"] in mine["prompt"]]
    for members in groups.values():
        left = sum(row["row"] in kept for row in members)
        pair = figures.duplicates[members[0]["how"]]
        pair[0] += min(len(members) - left, len(members) - 1)
        pair[1] += len(members) - 1


def _count(pair: list[int], hit: bool) -> None:
    pair[0] += hit
    pair[1] += 1


def measure(log: Path, truth_file: Path, out: Path) -> tuple[Figures, Report]:
    """Collect the log into ``out`` and compare with the truth."""
    truth = [json.loads(line) for line in truth_file.read_text(encoding="utf-8").splitlines()]
    report = collect([log], out, Settings(salt=b"a fixed salt, for a generated log"))
    figures = Figures()
    measure_personal(truth, figures)
    measure_collection(truth, out, report, figures)
    return figures, report


def share(pair: list[int]) -> str:
    return f"{pair[0]:>6,} of {pair[1]:>6,}  {pair[0] / max(pair[1], 1):7.2%}"


def show(figures: Figures, report: Report) -> None:
    print(f"read {report.read:,}, kept {report.kept:,}; dropped: {dict(report.dropped)}")
    print(f"\npersonal data: recall {figures.recall:.2%} overall")
    for kind in sorted(figures.found):
        print(f"  {kind:<12} found {share(figures.found[kind])}")
    right = [sum(pair[i] for pair in figures.right.values()) for i in (0, 1)]
    print(f"precision {share(right)}")
    for kind in sorted(figures.right):
        print(f"  {kind:<12} right {share(figures.right[kind])}")
    print(f"clean queries in which something was taken for personal data: {share(figures.damaged)}")
    print(f"planted values left in kept prompts: {len(figures.leaked):,}")
    print("\nduplicates")
    for how in sorted(figures.duplicates):
        print(f"  {how:<12} found {share(figures.duplicates[how])}")
    print(f"queries removed that were no planted duplicate: {share(figures.falsely)}")
    print(f"rows without consent, user or text that were dropped: {share(figures.problems)}")
    print(f"\nlanguage right {share(figures.language)}\nuse case as meant {share(figures.use_case)}")
    print(f"splits: {report.splits}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--truth", type=Path, help="default: the log's name with .truth")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--details", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    figures, report = measure(options.log, options.truth or options.log.with_suffix(".truth.jsonl"), options.out)
    show(figures, report)
    print(f"{time.perf_counter() - start:.0f} s")
    for title, cases in (("missed", figures.missed), ("wrongly found", figures.wrong)):
        for kind, text in cases[: options.details]:
            print(f"{title}: {kind}: {text!r}")
    sys.exit(0 if figures.recall >= BAR and figures.all_duplicates else 1)


if __name__ == "__main__":
    main()

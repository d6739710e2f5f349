"""What preference rows hold, by hand, and how the commands show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from graftlm.cli.app import app
from graftlm.data.instances import Instance, Message, Verdict
from graftlm.data.preference_facts import describe, facts_of
from graftlm.data.verdicts import label_of, margin_of, scores_of


def answers(*texts: str, verdicts: tuple[Verdict, ...] = ()) -> Instance:
    said = [Message("rejected" if place else "assistant", text) for place, text in enumerate(texts)]
    return Instance((Message("user", "q"), *said), "f", 1, verdicts=verdicts)


def labelled(text: str, *values: float) -> Instance:
    return answers(text, verdicts=tuple(Verdict("labels", (v,), "", str(n)) for n, v in enumerate(values)))


def test_lengths_of_comparisons() -> None:
    tie = Verdict("ranks", (0.0, 0.0), "harmless")
    found = facts_of([answers("aaa", "a"), answers("a", "bb", "c"), answers("a", "b", verdicts=(tie,))])
    whole, harmless = found.compared[""], found.compared["harmless"]
    # aaa > a; a > bb, a > c, bb > c: the longer one is better twice, once the shorter one, once as long.
    assert (whole.longer, whole.shorter, whole.equal, whole.longer_wins) == (2, 1, 1, 0.625)
    assert (harmless.ties, harmless.comparisons, harmless.longer_wins) == (1, 0, None)
    assert found.forms == {"pairs": 2, "lists of 3": 1}
    assert describe(found)[:2] == ["preference rows: 3 (2 pairs, 1 list of 3)", "as a whole: 4 comparisons, 0 ties"]


def test_single_answers() -> None:
    rows = [labelled("aaa", 1), labelled("aa", 1, 1, 0), labelled("a", 0), labelled("aa", 0), labelled("a", 1, 0)]
    single = facts_of(rows).single[""]
    assert (single.good, single.bad, single.undecided) == ([3, 2], [1, 2], 1)
    assert single.longer_is_good == (4 - 0.5) / 4
    ratings = [
        answers("a" * n, verdicts=(Verdict("ratings", (r,), "polite"),)) for n, r in ((1, 1.0), (2, 3.0), (3, 2.0))
    ]
    found = facts_of(ratings).single["polite"]
    assert found.correlation == pytest.approx(0.5)
    assert "polite: 3 ratings from 1 to 3, mean 2.00; correlation with length 0.50" in describe(facts_of(ratings))


def test_plain_rows_do_not_count() -> None:
    assert facts_of([answers("a")]).rows == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1))
def test_longer_is_good_is_the_share_of_all_pairs(rows: list[tuple[bool, int]]) -> None:
    found = facts_of(labelled("a" * length, float(good)) for good, length in rows).single[""]
    pairs = [(g > b) + (g == b) / 2 for g in found.good for b in found.bad]
    assert found.longer_is_good == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_scores_labels_and_margins_of_several_annotators() -> None:
    def ranks(*values: float | None, who: str, criterion: str = "", margin: float = 0.0) -> Verdict:
        return Verdict("ranks", values, criterion, who, margin)

    row = answers("a", "b", "c", verdicts=(ranks(1, 2, None, who="x", margin=2), ranks(2, 1, 3, who="y", margin=1)))
    assert scores_of(row) == [-1.5, -1.5, -3.0]
    assert scores_of(row, "harmless") is None
    assert margin_of(row) == 1.5
    assert scores_of(answers("a", "b", "c")) == [0, -1, -2]
    assert scores_of(answers("a", "b"), "harmless") is None
    assert scores_of(answers("a")) is None
    by = answers("a", "b", verdicts=(ranks(1, 2, who="x", criterion="h"), ranks(2, 1, who="x", criterion="p")))
    assert (scores_of(by, "h"), scores_of(by, "p"), scores_of(by)) == ([-1, -2], [-2, -1], [-1.5, -1.5])
    assert [label_of(labelled("a", *values)) for values in ((1,), (0,), (1, 0), (1, 1, 0), ())] == [
        True,
        False,
        None,
        True,
        None,
    ]


def write(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


PAIR = {"prompt": "Where is the cat?", "chosen": "On the mat.", "rejected": "No."}
LIST = {"prompt": "Where is the cat?", "ranked": ["On the mat.", "Out.", "No."], "annotator": "Ann"}
RATED = {"prompt": "Where is the cat?", "completion": "Out.", "ratings": {"polite": 2}}


def test_preview(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": "On the mat."}
    file = write(tmp_path, PAIR, LIST, {**PAIR, "tie": True}, same)
    result = CliRunner().invoke(app, ["data", "preview", file])
    assert result.exit_code == 0, result.output
    shown = result.output.replace(str(tmp_path), "")
    for line in (
        "preference rows: 3 (2 pairs, 1 list of 3)",
        "as a whole: 4 comparisons, 1 ties",
        "  characters (median): better 11, worse 3; the longer one wins 100.0%",
        "rejected: No.",
        "answer 3: No.",
        "as good (a tie): No.",
        "ranks, as a whole: 0, 1, 2 (Ann)",
        "kept       3 of 4\n",
        "dropped    1: the chosen and the rejected answer are the same (/rows.jsonl:4)",
    ):
        assert line in shown
    polite = CliRunner().invoke(app, ["data", "preview", write(tmp_path, RATED), "--criterion", "polite=Says please."])
    assert "polite: Says please." in polite.output
    assert "ratings, polite: 2" in polite.output
    bare = CliRunner().invoke(app, ["data", "preview", write(tmp_path, RATED)])
    assert "no definition is known of polite" in bare.output


def test_inspect(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    file = write(tmp_path, PAIR, LIST, {**PAIR, "rejected": " "})
    result = CliRunner().invoke(app, ["data", "inspect", file, "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert "dropped 1: empty rejected answer" in result.output
    assert "preference rows: 2 (1 pair, 1 list of 3)" in result.output
    text = page.read_text("utf-8")
    assert "answer 3 of 3 · ranks, as a whole: 2" in text
    assert "The better answer is, as a whole" in text
    assert "Characters of a better answer" in text
    assert "Choosing the longer one is right in 100.0%." in text

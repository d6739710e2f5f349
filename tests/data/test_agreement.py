"""Agreement between annotators: by hand, against published values, and whatever the order of answers is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from graftlm.cli.app import app
from graftlm.data.agreement import agreement
from graftlm.data.instances import Instance, Message, Verdict

# Krippendorff 2011, Computing Krippendorff's alpha-reliability, section E: four coders, twelve units, values missing.
CODERS = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}


def rated(unit: int, annotator: str, value: float, row: int = 1) -> Instance:
    messages = (Message("user", f"q{unit}"), Message("assistant", "a"))
    return Instance(messages, "f", row, verdicts=(Verdict("ratings", (value,), "helpful", annotator),))


def pair(prompt: str, better: str, worse: str, annotator: str, tie: bool = False, row: int = 1) -> Instance:
    messages = (Message("user", prompt), Message("assistant", better), Message("rejected", worse))
    return Instance(messages, "f", row, verdicts=(Verdict("ranks", (0.0, 0.0 if tie else 1.0), "", annotator),))


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_published_values(level: Any, alpha: float) -> None:
    found = [
        rated(unit, name, value)
        for name, values in CODERS.items()
        for unit, value in enumerate(values)
        if value is not None
    ]
    [part] = agreement(found, level).parts
    assert part.alpha == pytest.approx(alpha, abs=5e-4)
    assert (part.units, part.alone, part.annotators, part.criterion) == (11, 1, 4, "helpful")


def test_pairs_by_hand() -> None:
    # Three units of two annotators, two of them agreed on. Both ways round, each of −1 and 1 is said 6 times of 12:
    # observed disagreement 1/3, expected 2 · 6 · 6 / (12 · 11), so alpha = 1 − (1/3) / (6/11).
    found = [pair("1", "a", "b", "x"), pair("1", "a", "b", "y"), pair("2", "b", "a", "x"), pair("2", "b", "a", "y")]
    found += [pair("3", "a", "b", "x", row=5), pair("3", "b", "a", "y", row=6)]
    [part] = agreement(found).parts
    assert part.alpha == pytest.approx(1 - (1 / 3) / (6 / 11))
    assert part.same == pytest.approx(2 / 3)
    [apart] = part.disagreements
    assert (apart.prompt, apart.answers) == ("3", ("a", "b"))
    assert [(said.annotator, said.value, said.row) for said in apart.said] == [("x", 1, 5), ("y", -1, 6)]


def test_lists_are_compared_pair_by_pair() -> None:
    messages = (Message("user", "q"), *(Message("assistant" if t == "a" else "rejected", t) for t in "abc"))
    verdicts = (Verdict("ranks", (1, 2, 3), "", "x"), Verdict("ranks", (1, 3, 2), "", "y"))
    [part] = agreement([Instance(messages, "f", 1, verdicts=verdicts)]).parts
    assert (part.units, part.same) == (3, pytest.approx(2 / 3))
    assert [each.answers for each in part.disagreements] == [("b", "c")]


def test_what_cannot_be_told() -> None:
    alone = agreement([pair("1", "a", "b", "x")]).parts[0]
    assert (alone.alpha, alone.reason) == (None, "nothing was judged by two annotators")
    equal = agreement([rated(1, "x", 3), rated(1, "y", 3)]).parts[0]
    assert equal.alpha is None
    assert equal.reason.startswith("all values are the same")
    messages = (Message("user", "q"), Message("assistant", "a"), Message("rejected", "b"))
    report = agreement([Instance(messages, "f", 1), pair("1", "a", "b", "x"), pair("1", "b", "a", "x")])
    assert (report.verdicts, report.unnamed, report.repeated, report.changed) == (3, 1, 1, 1)


VOTES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("xyz"), st.sampled_from([-1, 0, 1])), min_size=4)


@given(VOTES, st.randoms(use_true_random=False))
def test_the_order_of_answers_and_rows_changes_nothing(votes: list[tuple[int, str, int]], random: Any) -> None:
    unique = list({(unit, who): (unit, who, value) for unit, who, value in votes}.values())

    def rows(swap: bool) -> list[Instance]:
        made = []
        for unit, who, value in unique:
            better, worse = ("a", "b") if value >= 0 else ("b", "a")
            if swap:  # the other answer is the first by its text
                better, worse = (text.translate(str.maketrans("ab", "ba")) for text in (better, worse))
            made.append(pair(str(unit), better, worse, who, tie=value == 0))
        return made

    one, other = rows(False), rows(True)
    random.shuffle(other)
    [first], [second] = agreement(one).parts, agreement(other).parts
    assert first.alpha == (None if second.alpha is None else pytest.approx(second.alpha))
    assert (first.units, first.same, len(first.disagreements)) == (second.units, second.same, len(second.disagreements))


def test_command(tmp_path: Path) -> None:
    def row(prompt: str, chosen: str, rejected: str, who: str) -> dict[str, Any]:
        pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        return {**pair, "annotator": who, "ratings": {"polite": [5, 1 if who == "Ann" else 4]}}

    rows = [row("1", "a", "b", "Ann"), row("1", "a", "b", "Bea"), row("2", "a", "b", "Ann"), row("2", "b", "a", "Bea")]
    file = tmp_path / "f.jsonl"
    file.write_text(
        "".join(json.dumps(each) + "\n" for each in [*rows, {**rows[0], "rejected": "a"}]), encoding="utf-8"
    )
    out = tmp_path / "apart.jsonl"
    result = CliRunner().invoke(app, ["data", "agreement", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "rows dropped: 1" in result.output
    assert "as a whole, which of two: 1 disagreements" in result.output
    assert "Bea: B is better (f.jsonl:4)" in result.output
    assert "no definition is known of polite; write one" in result.output
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert found[0]["said"][1] == {"annotator": "Bea", "value": "B is better", "source": str(file), "row": 4}
    given = CliRunner().invoke(app, ["data", "agreement", str(file), "--criterion", "polite=Greets."])
    assert "polite: Greets." in given.output
    (tmp_path / "plain.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    plain = CliRunner().invoke(app, ["data", "agreement", str(tmp_path / "plain.jsonl")])
    assert "none is a preference row" in str(plain.exception)

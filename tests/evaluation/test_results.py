"""Results outlive a killed run: what is whole is kept, what is cut off or of other rows is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.evaluation.results import ItemResult, ResultFile

HEADER = {"task": "a", "rows": "b"}
RESULTS = {
    0: ItemResult("i0", log_probs=(-1.0, None), tokens=(2, 0), sizes=(5, 6)),
    2: ItemResult("i2", text="so\u2028much \ud800", ended=False, scores={"exact": 1.0}),
    1: ItemResult("i1", error="no room"),
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "x" / "m.jsonl", HEADER)
    file.add({0: RESULTS[0]})
    file.add({place: RESULTS[place] for place in (2, 1)})
    again = ResultFile(file.path, HEADER)
    assert again.results == RESULTS
    assert again.missing(4) == [3]


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_file_cut_anywhere_goes_on_behind_its_last_whole_line(tmp_path: Path, cut: int) -> None:
    file = ResultFile(tmp_path / "m.jsonl", HEADER)
    file.add(RESULTS)
    data = file.path.read_bytes()
    file.path.write_bytes(data[: max(0, len(data) - cut)])
    again = ResultFile(file.path, HEADER)
    again.add({place: RESULTS[place] for place in again.missing(3)})
    whole = ResultFile(file.path, HEADER)
    assert whole.missing(3) == []
    assert whole.results[0] == RESULTS[0]


def test_results_of_other_rows_are_begun_anew(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "m.jsonl", HEADER)
    file.add(RESULTS)
    other = ResultFile(file.path, {**HEADER, "rows": "c"})
    assert other.results == {}
    assert (other.begun_anew, file.begun_anew) == (True, False)
    other.add({0: RESULTS[0]})
    assert ResultFile(file.path, {**HEADER, "rows": "c"}).results == {0: RESULTS[0]}

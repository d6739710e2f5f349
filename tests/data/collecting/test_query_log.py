"""A small generated log with planted personal data and duplicates: what scripts/check_query_log.py measures in full."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.mark.slow
def test_planted_data_and_duplicates_are_found(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_query_log
    import make_query_log

    log, truth = tmp_path / "log.jsonl", tmp_path / "log.truth.jsonl"
    make_query_log.write(log, truth, rows=1500, seed=7)
    figures, report = check_query_log.measure(log, truth, tmp_path / "out")
    assert figures.recall >= 0.95
    assert figures.all_duplicates, dict(figures.duplicates)
    assert figures.problems[0] == figures.problems[1] > 10
    assert figures.falsely[0] / figures.falsely[1] < 0.02
    right = [sum(pair[i] for pair in figures.right.values()) for i in (0, 1)]
    assert right[0] / right[1] > 0.95
    assert report.read == 1500 == report.kept + sum(report.dropped.values())


def test_the_generator_shares_nothing_with_the_package():
    for name in ("make_query_log.py", "query_log_personal.py"):
        text = (SCRIPTS / name).read_text(encoding="utf-8")
        assert "import graftlm" not in text
        assert "from graftlm" not in text
        assert "phonenumbers" not in text

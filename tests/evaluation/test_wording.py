"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from graftlm.evaluation import wording
from graftlm.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.5, "50%"), (0.004, "0.4%"), (0.996, "99.6%"), (0.9996, "99.96%"), (1.0, "100%"), (math.nan, "–")],
)
def test_share(number: float, text: str) -> None:
    assert wording.share(number) == (text if text != "0" else "0%")


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.104, "3.10"), (0.0, "0.00"), (0.0012, "0.0012"), (-2.5, "−2.50"), (math.nan, "NaN"), (-math.inf, "−∞")],
)
def test_loss(number: float, text: str) -> None:
    assert wording.loss(number) == text


def test_changes_keep_their_sign_and_enough_digits() -> None:
    narrow = Interval(-0.002, -0.0035, -0.0005)
    assert wording.loss_pair(narrow, wording.loss_decimals(narrow)) == "−0.0035 to −0.0005"
    assert wording.loss_pair(Interval(0, -0.5, 0.25), 2) == "−0.50 to +0.25"
    assert wording.share_pair(Interval(0.05, 0.003, 0.1)) == "+0.3 to +10 points"
    assert wording.share_pair(Interval(1.0, 0.995, 1.0)) == "+99.5 to +100 points"
    assert wording.share_pair(Interval(1, math.nan, math.nan)) == "no interval"


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (5_733_632, "5.73M"), (999_600, "1M"), (12_345, "12.3k"), (7 * 10**9, "7B")]
)
def test_short_count(number: int, text: str) -> None:
    assert wording.short_count(number) == text


def test_size_and_duration() -> None:
    assert wording.size(1_420_000_000) == "1.42 GB"
    assert wording.size(12) == "12 bytes"
    assert [wording.duration(s) for s in (4.2, 59.6, 161.4, 11_520)] == [
        "4.2 s",
        "1 min 0 s",
        "2 min 41 s",
        "3 h 12 min",
    ]


def test_settings_read_back_as_given() -> None:
    assert [wording.plain(x) for x in (2e-4, 1e-5, 3.0, 0.5, 1e-10)] == ["0.0002", "1e-5", "3", "0.5", "1e-10"]

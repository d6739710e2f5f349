"""How small a loss would have been found: with 80% power, at 5% over all comparisons that are made."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

POWER = 0.8
ALPHA = 0.05


def noticed_change(error: float, family: int = 1, *, power: float = POWER) -> float:
    """The smallest change that a two-sided test finds, from the standard error of the paired difference.

    ``family``: of so many comparisons; each is then tested at 5% / family, the strictest that Holm asks. NaN where the
    standard error is 0 or unknown: the rows then do not tell.
    """
    if not error > 0:
        return math.nan
    return float((stats.norm.isf(ALPHA / family / 2) + stats.norm.isf(1 - power)) * error)


def noticed_share(rows: int, differing: int, family: int = 1, *, power: float = POWER) -> float:
    """The smallest loss of a share that McNemar's exact test finds on the same rows, from 0 to 1.

    ``differing``: how many of the ``rows`` only one of the two answers right. The test is exact and finds less on few
    rows than a normal distribution promises; so its power is counted out. NaN where no loss at all would be found.
    """
    low, high = 0.0, 1.0
    if not rows or share_power(rows, high, differing / rows, ALPHA / family) < power:
        return math.nan
    while high - low > 1e-5:
        middle = (low + high) / 2
        if share_power(rows, middle, differing / rows, ALPHA / family) < power:
            low = middle
        else:
            high = middle
    return high


def share_power(rows: int, loss: float, differing: float, alpha: float = ALPHA) -> float:
    """How probably McNemar's exact test finds a loss, where a share of the rows differs (of which it is at least)."""
    share = min(1.0, max(differing, loss))
    if share <= 0:
        return 0.0
    spread = 8 * math.sqrt(rows * share * (1 - share)) + 1
    counts = np.arange(max(0, math.floor(rows * share - spread)), min(rows, math.ceil(rows * share + spread)) + 1)
    most = stats.binom.ppf(alpha / 2, counts, 0.5)
    most -= stats.binom.cdf(most, counts, 0.5) > alpha / 2  # the most rows won at which the test says "lost"
    found = stats.binom.cdf(most, counts, (share - loss) / share / 2)
    return float((stats.binom.pmf(counts, rows, share) * found).sum())

"""Numbers as people read them: counts, bytes, durations, losses, shares and their changes."""

from __future__ import annotations

import math

from graftlm.evaluation.statistics import Change, Interval

MINUS = "\N{MINUS SIGN}"


def count(number: int) -> str:
    """12,345."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """5.73M."""
    return _scaled(number, {"B": 1e9, "M": 1e6, "k": 1e3}) or str(number)


def plural(number: int, word: str) -> str:
    """1 row, 2 rows."""
    return f"{count(number)} {word}" if number == 1 else f"{count(number)} {word}s"


def size(number: float) -> str:
    """Bytes, in powers of ten: 1.42 GB."""
    return _scaled(number, {" TB": 1e12, " GB": 1e9, " MB": 1e6, " kB": 1e3}) or f"{number:.0f} bytes"


def duration(seconds: float) -> str:
    """3 h 12 min, 2 min 41 s or 4.2 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plain(number: float) -> str:
    """The shortest form that reads back as the same number, so that a setting is shown as it was given."""
    return f"{int(number):,}" if number == int(number) and abs(number) < 1e15 else f"{number:g}".replace("e-0", "e-")


def loss(number: float, decimals: int = 2) -> str:
    """A loss; small ones keep two significant digits."""
    if not math.isfinite(number):
        return _odd(number)
    if 0 < abs(number) < 10**-decimals:
        return _signed(number, f"{abs(number):.2g}")
    return _signed(number, f"{abs(number):.{decimals}f}")


def loss_decimals(interval: Interval) -> int:
    """Decimals that show an interval's width with two digits, between 2 and 5."""
    width = interval.high - interval.low
    if not (math.isfinite(width) and width > 0):
        return 2
    return min(5, max(2, 1 - math.floor(math.log10(width))))


def share(number: float) -> str:
    """A share as a percentage; 0% and 100% are said only where it is so."""
    if not math.isfinite(number):
        return "–"
    return f"{_whole(100 * number, 0, 100)}%"


def share_pair(change: Interval) -> str:
    """+85 to +93 points."""
    if not change.known:
        return "no interval"
    return f"{_points(change.low)} to {_points(change.high)} points"


def share_value(change: Change) -> str:
    """+89 points."""
    return f"{_points(change.value)} points"


def loss_pair(change: Interval, decimals: int) -> str:
    """−2.95 to −2.80."""
    if not change.known:
        return "no interval"
    return f"{_plus(change.low, decimals)} to {_plus(change.high, decimals)}"


def loss_value(change: Change, decimals: int) -> str:
    """−2.89."""
    return _plus(change.value, decimals)


def _scaled(number: float, units: dict[str, float]) -> str | None:
    for name, unit in units.items():
        if number >= 0.9995 * unit:  # 999,600 is 1M and not 1000k
            return f"{number / unit:.3g}{name}" if number < 1000 * unit else f"{number / unit:,.0f}{name}"
    return None


def _points(number: float) -> str:
    if not math.isfinite(number):
        return _odd(number)
    text = _whole(abs(100 * number), 0, 100)
    if text == "0":
        return "0"
    return (MINUS if number < 0 else "+") + text


def _whole(number: float, low: float, high: float) -> str:
    # A rounded number must not reach an end that the number itself does not reach: 99.6% is not 100%.
    rounded = round(number)
    if math.isclose(number, rounded, abs_tol=1e-9) or low < rounded < high:
        return str(rounded)
    for decimals in (1, 2, 3):
        text = f"{number:.{decimals}f}"
        if low < float(text) < high:
            return text
    return str(rounded)


def _plus(number: float, decimals: int) -> str:
    text = loss(number, decimals)
    return f"+{text}" if math.isfinite(number) and number > 0 else text


def _signed(number: float, text: str) -> str:
    return MINUS + text if number < 0 and float(text) != 0 else text


def _odd(number: float) -> str:
    return "NaN" if math.isnan(number) else ("∞" if number > 0 else f"{MINUS}∞")

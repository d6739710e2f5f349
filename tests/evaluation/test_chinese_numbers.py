import random
from fractions import Fraction

import pytest

from graftlm.evaluation.chinese_numbers import chinese_numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("九", [9]),
        ("十", [10]),
        ("十五", [15]),
        ("二十", [20]),
        ("二十一颗", [21]),
        ("一百", [100]),
        ("三百零五", [305]),
        ("三百五", [350]),
        ("一千零二十", [1020]),
        ("两千四百零六", [2406]),
        ("一万", [10000]),
        ("一万二", [12000]),
        ("一万零二", [10002]),
        ("十万", [100000]),
        ("三千二百一十五万", [32150000]),
        ("一亿零五万", [100050000]),
        ("十二万三千亿", [123000 * 10**8]),
        ("二〇二四年", [2024]),
        ("零", [0]),
        ("三点五米", [Fraction(7, 2)]),
        ("三点十分", [3, 10]),
        ("三点二十分", [3, 20]),
        ("负三度", [-3]),
        ("四分之三", [Fraction(3, 4)]),
        ("百分之二十五", [25]),
        ("三分之一", [Fraction(1, 3)]),
        ("零分之一", [1]),
        ("考了二十分", [20]),
        ("十万一千", [101000]),
        ("走了二十一步", [21]),
        ("五元三角", [5, 3]),
        ("先算三加四，一共是七个", [3, 4, 7]),
        ("十分高兴，千万别忘，万一下雨，大家一起，三角形之一", []),
        ("十分钟", [10]),
        ("两千兩百", [2200]),
        ("nothing", []),
    ],
)
def test_numbers_in_chinese_words(text: str, numbers: list[int | Fraction]) -> None:
    assert chinese_numbers(text) == numbers


def in_words(number: int) -> str:
    """A number below 10^12 as it is read aloud."""
    parts = []
    for unit, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        count, number = divmod(number, unit)
        if count:
            parts.append(("零" if parts and count < 1000 else "") + below_ten_thousand(count) + name)
    return "".join(parts) or "零"


def below_ten_thousand(number: int) -> str:
    text, skipped = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        text += ("零" if skipped else "") + "零一二三四五六七八九"[digit] + name if digit else ""
        skipped = bool(text) and not digit
    return text


def test_every_number_read_aloud_is_found() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        number = draw.randrange(10 ** draw.randrange(1, 12))
        assert chinese_numbers(f"共{in_words(number)}元。") == [number]

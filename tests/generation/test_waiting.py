"""The queue of waiting rows against a plain list, and how often a long one is walked through."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from graftlm import AdaptedModel
from graftlm.generation import Engine, Request, SamplingSettings
from graftlm.generation.rows import Row
from graftlm.generation.waiting import Waiting


def row(request_id: int, index: int, stack: tuple[str, ...]) -> Row:
    return Row(request_id, index, (5,), 0, stack, SamplingSettings(), 0, frozenset(), 9, None)


def test_as_a_list() -> None:
    draw = random.Random(0)
    waiting, expected = Waiting(), []
    for number in range(300):
        if draw.random() < 0.6 or not expected:
            new = [row(number, index, draw.choice([(), ("a",), ("a", "b")])) for index in range(draw.randint(1, 3))]
            waiting.extend(new)
            expected += new
        else:
            gone = draw.sample(expected, min(len(expected), draw.randint(1, 4)))
            waiting.remove([*gone, row(1, 0, ())])
            expected = [one for one in expected if all(one is not other for other in gone)]
        assert [id(one) for one in waiting] == [id(one) for one in expected]
        assert len(waiting) == len(expected)
        assert waiting.stacks == {one.stack for one in expected}
        assert [id(one) for one in waiting.of(number // 2)] == [id(one) for one in expected if one.id == number // 2]
        if expected:
            assert waiting.first is expected[0]


def test_nothing_walks_through_it(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def walked(_: Waiting) -> Iterator[Row]:
        raise AssertionError("the whole queue was walked through")

    monkeypatch.setattr(Waiting, "__iter__", walked)
    sampling = SamplingSettings(max_new_tokens=3, temperature=1.0, seed=1, stop_ids=())
    engine = Engine(llama, max_batch_rows=2)
    for number in range(5):
        engine.submit(Request((5, 6, 7 + number), "a", sampling, id=number))
    engine.step()
    engine.cancel(4)
    while engine.busy:
        engine.step()
    with_rest = engine.stream([Request((5, 6, 7 + number), None, sampling) for number in range(5)])
    next(with_rest)
    with_rest.close()
    assert not engine.busy

"""The arithmetic of the benchmark of generation: what is asked for, what counts, what passes."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_import_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_every_scenario_asks_for_its_tokens():
    from generate_work import SCENARIOS, Sizes, asked, wanted

    sizes = Sizes()
    answers = {scenario: asked(scenario, sizes) for scenario in SCENARIOS}
    for scenario in ("plain", "lora", "kinds"):
        assert (len(answers[scenario]), wanted(answers[scenario])) == (32, 2048)
        assert {len(answer.prompt) for answer in answers[scenario]} == {64}
    prompts = [answer.prompt for answer in answers["samples"]]
    assert (len(set(prompts)), len(prompts[0])) == (4, 256)
    assert all(prompts[place] == prompts[place // 8 * 8] for place in range(32))
    assert asked("unequal", sizes) == answers["unequal"]


def test_unequal_lengths_are_log_normal_and_of_their_mean():
    from generate_work import Sizes, asked

    lengths = sorted(answer.new for answer in asked("unequal", Sizes(longest=10_000)))
    assert sum(lengths) / 96 == pytest.approx(64, rel=0.05)
    assert lengths[48] == pytest.approx(64 / 2.718281828**0.5, rel=0.05)  # the median: exp(-1/2) of the mean
    cut = [answer.new for answer in asked("unequal", Sizes())]
    assert max(cut) == 256
    assert cut != sorted(cut)


def test_fixed_batches_keep_the_order():
    from generate_work import Asked, batches

    answers = [Asked((5,), new) for new in range(1, 6)]
    assert [[answer.new for answer in batch] for batch in batches(answers, 2)] == [[1, 2], [3, 4], [5]]


def test_slots_count_only_while_requests_wait():
    from generate_work import busy_share

    assert busy_share([4, 4, 2, 1], [3, 1, 0, 0], slots=4) == 1.0
    assert busy_share([4, 2, 2], [2, 2, 0], slots=4) == 0.75
    assert busy_share([4, 4], [0, 0], slots=4) is None


@pytest.mark.parametrize(("lengths", "exact"), [([3], True), ([3, 1], True), ([3, 3], True), ([3, 1], False)])
def test_work_that_was_not_done_ends_a_contender(lengths: list[int], exact: bool):
    from generate_work import Asked, check_lengths

    answers = [Asked((5,), 3), Asked((5,), 2)]
    with pytest.raises(SystemExit, match="wanted"):
        check_lengths(answers, lengths, exact=exact)
    check_lengths(answers, [3, 2])
    check_lengths(answers, [3, 3], exact=False)


def test_a_bar_is_passed_failed_or_none():
    from _measure import Failure
    from generate import BARS, CONTENDERS, checks

    def figures(seconds: float) -> dict[str, object]:
        return {"tokens": 2048, "seconds": seconds, "user_seconds": 2 * seconds, "system_seconds": 0.0}

    for scenario, bars in BARS.items():
        labels = {contender.label for contender in CONTENDERS[scenario]}
        assert {label for bar in bars for label in (bar.ours, bar.beside)} <= labels
    found = {contender.label: figures(6.0) for contender in CONTENDERS["plain"]}
    found |= {"graftlm": figures(3.0), "products alone": figures(2.0), "transformers generate_batch": Failure("no")}
    generate, batch, limit = checks("plain", found)
    assert (generate.value, generate.processor, generate.passed) == (2.0, 2.0, True)
    assert (batch.value, batch.passed) == (None, False)
    assert limit.value == pytest.approx(2 / 3)
    assert limit.passed

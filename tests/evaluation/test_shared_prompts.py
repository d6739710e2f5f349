"""Answers that share a prompt score as they do one by one, for every method and family, mixed in one pass."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.routing import Stack
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.evaluation import shared_prompts
from graftlm.evaluation.shared_prompts import score_groups
from graftlm.training.forward import RoutedRow, RowScore, score_rows
from tests.families import ENCODERS, FAMILIES, VOCABULARY, add_random, make_base
from tests.methods import METHODS


def groups_of(stacks: list[Stack], *, seed: int = 0, shortest: int = 9, longest: int = 14) -> list[list[RoutedRow]]:
    """For each stack some questions with two to four answers of one to five tokens behind one prompt."""
    generator = random.Random(seed)
    tokens = lambda count: [generator.randrange(3, VOCABULARY) for _ in range(count)]  # noqa: E731
    found = []
    for stack in stacks:
        for _ in range(3):
            prompt = tokens(generator.randint(shortest, longest))
            rows = []
            for number in range(generator.randint(2, 4)):
                answer = tokens(generator.randint(1, 5))
                ids, learnt = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
                rows.append(RoutedRow(EncodedRow(ids, learnt, "here", number), stack))
            found.append(rows)
    return found


def scored(model: AdaptedModel, groups: list[list[RoutedRow]], max_tokens: int = 200) -> list[list[RowScore]]:
    found = dict(pair for batch in score_groups(model, groups, max_tokens) for pair in batch)
    return [found[number] for number in range(len(groups))]


def assert_like_alone(model: AdaptedModel, groups: list[list[RoutedRow]], max_tokens: int = 200) -> None:
    for rows, scores in zip(groups, scored(model, groups, max_tokens), strict=True):
        for row, score in zip(rows, scores, strict=True):
            (alone,) = score_rows(model, [row], 1000)
            assert score.log_prob == pytest.approx(alone.log_prob, rel=1e-5), row.stack
            assert (score.tokens, score.hits) == (alone.tokens, alone.hits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_the_bare_base_and_two_kinds_of_adapters(family: str) -> None:
    model = AdaptedModel(make_base(family))
    add_random(model, {"a": LoRA(rank=2), "b": METHODS["prompt"]})
    with contextlib.suppress(UserError):  # families without a place for it
        add_random(model, {"c": METHODS["prefix"]})
    stacks: list[Stack] = [(), *((name,) for name in model.adapters)]
    assert_like_alone(model, groups_of(stacks))


@pytest.mark.parametrize(("family", "lacks"), [("llama", ["bitfit"]), ("gpt2", ["copies"])])
def test_all_methods_in_one_pass(make_model: Callable[..., AdaptedModel], family: str, lacks: list[str]) -> None:
    model = make_model(family)
    methods = {name: config for name, config in METHODS.items() if name not in lacks}
    add_random(model, methods)
    assert_like_alone(model, groups_of([(name,) for name in methods]))


def test_stacks_and_groups_of_any_shape(make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model("llama")
    add_random(model, {"a": LoRA(rank=2), "b": METHODS["prefix"]})
    groups = groups_of([("a", "b"), ()], shortest=1, longest=20)
    groups.append(groups[0][:1])  # one answer alone
    same = groups[1][0].row
    part = EncodedRow(same.ids[:-1], same.supervised[:-1], "here", 9)
    if part.n_supervised:
        groups.append([RoutedRow(same, ()), RoutedRow(part, ())])  # one answer begins like the other
    far = EncodedRow(same.ids, [place in (2, len(same.ids) - 1) for place in range(len(same.ids))], "here", 1)
    groups.append([RoutedRow(far, ("a",)), RoutedRow(far, ("a",))])  # learnt early: there is nothing to share
    for max_tokens in (1, 40, 10_000):
        assert_like_alone(model, groups, max_tokens)


def test_rows_do_not_depend_on_their_neighbours(make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model("llama", dtype=torch.float64)
    add_random(model, {"a": LoRA(rank=2), "b": LoRA(rank=4), "c": METHODS["seq_bn"]})
    groups = groups_of([("a",), ("b",), ("c",), ()])
    together = scored(model, groups)
    order = list(range(len(groups)))
    random.Random(3).shuffle(order)
    shuffled = scored(model, [groups[number] for number in order], max_tokens=77)
    for place, number in enumerate(order):
        for one, other in zip(together[number], shuffled[place], strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, rel=1e-12)


def test_prompts_are_read_once_for_all_their_answers(make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model("llama")
    read = 0

    def count(_module: object, args: tuple[torch.Tensor, ...], _kwargs: object = None) -> None:
        nonlocal read
        read += args[0].numel()

    handle = model.base.get_input_embeddings().register_forward_pre_hook(count)
    rows = [EncodedRow([*range(3, 43), 50, number], [False] * 40 + [True] * 2, "here", number) for number in (1, 2, 3)]
    scored(model, [[RoutedRow(row, ()) for row in rows]])
    handle.remove()
    assert read == 40 + 3  # the prompt, and the first token of each answer; the last of a row is never read


def test_encoders_and_rows_of_heads_are_scored_as_they_are(make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model(next(iter(ENCODERS)))
    ids = list(range(3, 20))
    rows = [EncodedRow(ids, [False] * 17, "here", n, targets=[-1] * 16 + [n]) for n in (4, 5)]
    assert_like_alone(model, [[RoutedRow(row, ()) for row in rows]])


def test_without_memory_for_all_it_goes_on_in_halves(
    make_model: Callable[..., AdaptedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    groups = groups_of([(), ()])
    whole = scored(model, groups, 10_000)
    real, most = shared_prompts.go_on, 2

    def short(model: AdaptedModel, sequences: list[list[int]], *rest: Any) -> Any:
        if len(sequences) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, sequences, *rest)

    monkeypatch.setattr(shared_prompts, "go_on", short)
    pairs = [group[:2] for group in groups]
    for one, other in zip(scored(model, pairs, 10_000), whole, strict=True):
        assert [score.log_prob for score in one] == pytest.approx([score.log_prob for score in other[:2]], rel=1e-5)
    most = 0
    with pytest.raises(UserError, match="not enough memory for 2 answers"):
        scored(model, pairs, 10_000)

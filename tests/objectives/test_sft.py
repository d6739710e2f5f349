"""The loss of instruction tuning, by hand, and cut into micro-batches."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.routing import as_stack
from graftlm.data.batches import EncodedRow
from graftlm.objectives.objective import RowScores
from graftlm.objectives.sft import SFT, sft_loss
from graftlm.training.forward import (
    RoutedRow,
    build_micro_batch,
    micro_batch_log_probs,
    plan_micro_batches,
    score_rows,
)
from tests.families import add_random, gradients, make_base, relative


def test_by_hand() -> None:
    log_probs = torch.tensor([math.log(0.5), math.log(0.25), math.log(1.0)], requires_grad=True)
    loss = sft_loss(log_probs, 3)
    assert loss.item() == pytest.approx(math.log(2))  # (ln 2 + 2 ln 2 + 0) / 3
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-1 / 3] * 3)


def test_the_first_token_of_a_row_is_not_counted() -> None:
    rows = [EncodedRow([5, 6, 7], [True, False, True], "t", 1), EncodedRow([5, 6], [True, True], "t", 2)]
    assert SFT().statistics(rows) == 2
    scores = RowScores(torch.tensor([-2.0, -4.0]), (1, 1), tuple(rows))
    assert SFT().loss(scores, 2).item() == 3.0


@given(
    values=st.lists(st.lists(st.floats(-9, 0), min_size=1, max_size=5), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 5)),
)
def test_micro_batches_add_up(values: list[list[float]], cuts: set[int]) -> None:
    def flat(rows: list[list[float]]) -> torch.Tensor:
        return torch.tensor([value for row in rows for value in row], dtype=torch.float64)

    total = sum(len(row) for row in values)
    whole = sft_loss(flat(values), total)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    parts = [sft_loss(flat(values[start:stop]), total) for start, stop in pairwise(bounds)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("max_tokens", [1, 12, 20, 1000])
def test_gradients_do_not_depend_on_the_micro_batches(max_tokens: int) -> None:
    """Two adapters' steps of unequal size, in any cut: each gets the gradient of its own mean, as if alone."""
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    add_random(model, {"a": LoRA(), "b": LoRA(rank=3)})
    rows = [
        RoutedRow(
            EncodedRow([3 + (7 * n + i) % 60 for i in range(length)], [i % 3 != 1 for i in range(length)], "t", n),
            as_stack("ab"[n % 2]),
        )
        for n, length in enumerate([4, 9, 7, 3, 8, 6, 4])
    ]
    expected = {}
    for name in "ab":
        own = [row.row for row in rows if row.stack == (name,)]
        losses = []
        for row in own:
            ids = torch.tensor([row.ids])
            log_probs = model(ids, adapters=name).logits[0, :-1].log_softmax(-1)
            picked = log_probs[torch.arange(len(row.ids) - 1), ids[0, 1:]]
            losses.append(picked[torch.tensor(list(row.supervised[1:]))].sum())
        (-sum(losses) / sum(row.n_supervised for row in own)).backward()
        expected[name] = gradients([model.adapters[name]])
    for adapter in model.adapters.values():
        adapter.zero_grad()

    sft = SFT()
    statistics = {name: sft.statistics([row.row for row in rows if row.stack == (name,)]) for name in "ab"}
    total = 0.0
    for order in plan_micro_batches(rows, max_tokens):
        batch = build_micro_batch(model, rows, order)
        parts = micro_batch_log_probs(model, batch).split(batch.padded.counts)
        loss = torch.zeros((), dtype=torch.float64)
        for name in "ab":
            chosen = [n for n, index in enumerate(order) if rows[index].stack == (name,)]
            if chosen:
                scores = RowScores(
                    torch.cat([parts[n] for n in chosen]),
                    tuple(batch.padded.counts[n] for n in chosen),
                    tuple(rows[order[n]].row for n in chosen),
                )
                loss = loss + sft.loss(scores, statistics[name])
        loss.backward()
        total += loss.item()
    for name in "ab":
        for key, value in gradients([model.adapters[name]]).items():
            assert relative(value, expected[name][key]) < 1e-10

    scored = score_rows(model, rows, max_tokens)
    by_hand = sum(
        -sum(s.log_prob for s, row in zip(scored, rows, strict=True) if row.stack == (name,)) / statistics[name]
        for name in "ab"
    )
    assert by_hand == pytest.approx(total, rel=1e-10)
    assert [s.tokens for s in scored] == [row.row.n_supervised for row in rows]

"""Scores of encoders, encoder-decoders and adapters' own heads: transformers' own losses, and rows on their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from graftlm import AdaptedModel, LoRA
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.training.forward import (
    RoutedRow,
    build_micro_batch,
    micro_batch_log_probs,
    plan_micro_batches,
    score_rows,
)
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.adapters.grid import assert_gradients_close
from tests.families import ENCODER_DECODERS, VOCABULARY, gradients, make_base, randomise, relative
from tests.methods import METHODS
from tests.training.work import difference, run, weights

CLASSES = {"classifier": 3, "tagger": 5}
IGNORED = -100


def ids_of(draw: random.Random, longest: int = 12) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(4, longest))]


def token_row(draw: random.Random, number: int = 1) -> EncodedRow:
    """Next tokens, some of them learnt."""
    ids = ids_of(draw)
    return EncodedRow(ids, [False, *(draw.random() < 0.6 for _ in ids[2:]), True], "rows", number)


def class_row(draw: random.Random, name: str, number: int = 1) -> EncodedRow:
    """One class at the end, or one at every other position."""
    ids = ids_of(draw)
    targets = [-1] * len(ids)
    for place in [len(ids) - 1] if name == "classifier" else range(0, len(ids), 2):
        targets[place] = draw.randrange(CLASSES[name])
    return EncodedRow(ids, [False] * len(ids), "rows", number, targets)


def two_sequences(draw: random.Random, number: int = 1) -> EncodedRow:
    ids = ids_of(draw)
    return EncodedRow(ids, [False, *[True] * (len(ids) - 1)], "rows", number, source_ids=ids_of(draw))


def masked_row(draw: random.Random, number: int = 1) -> EncodedRow:
    """Tokens of the vocabulary at two positions."""
    ids = ids_of(draw)
    targets = [-1] * len(ids)
    for place in draw.sample(range(len(ids)), 2):
        targets[place] = draw.randrange(VOCABULARY)
    return EncodedRow(ids, [False] * len(ids), "rows", number, targets)


def model_with_heads(family: str, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    """Adapters of every kind of head; "tokens" has none of its own."""
    model = AdaptedModel(make_base(family, dtype=dtype))
    for seed, (name, classes) in enumerate({"tokens": None, **CLASSES}.items()):
        randomise(model.add(name, LoRA(rank=2), classes=classes), seed=seed + 1)
    return model


def mixed_rows(family: str) -> list[RoutedRow]:
    """Rows of all adapters, and of a stack, in random order."""
    draw = random.Random(1)
    plain = {"bert": masked_row, "roberta": masked_row}.get(family, token_row)
    rows = [RoutedRow(class_row(draw, name, n), (name,)) for n in range(3) for name in CLASSES]
    rows.append(RoutedRow(class_row(draw, "tagger"), ("classifier", "tokens", "tagger")))
    if family != "bare_bert":
        rows += [RoutedRow(plain(draw, n), ("tokens",)) for n in range(3)]
        rows.append(RoutedRow(plain(draw), ()))
    draw.shuffle(rows)
    return rows


def log_probs(model: AdaptedModel, rows: Sequence[RoutedRow], order: list[int]) -> list[torch.Tensor]:
    """The log-probabilities of each row, in the order of the batch."""
    batch = build_micro_batch(model, rows, order)
    return list(micro_batch_log_probs(model, batch).split(batch.padded.counts))


def weigh(parts: Sequence[torch.Tensor], numbers: Sequence[int]) -> torch.Tensor:
    return torch.stack(
        [(1 + number) * torch.tanh(part.mean()) for part, number in zip(parts, numbers, strict=True)]
    ).sum()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert", "roberta", "bare_bert"])
def test_mixed_heads_in_one_batch_equal_rows_alone(family: str) -> None:
    model = model_with_heads(family)
    rows = mixed_rows(family)
    order = random.Random(2).sample(range(len(rows)), len(rows))
    alone = [log_probs(model, rows, [index])[0] for index in order]
    weigh(alone, order).backward()
    expected = gradients(model.adapters.values())
    for adapter in model.adapters.values():
        adapter.zero_grad()
    together = log_probs(model, rows, order)
    weigh(together, order).backward()
    found = gradients(model.adapters.values())
    for one, other in zip(together, alone, strict=True):
        assert relative(one, other) < 1e-5
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-5, name


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_gradient_of_a_head_by_hand(family: str) -> None:
    """−log p of class t: ∂/∂W = (softmax − onehot(t)) hᵀ, ∂/∂b without h."""
    model = model_with_heads(family, torch.float64)
    row = class_row(random.Random(3), "tagger")
    assert row.targets is not None
    places = [place for place, target in enumerate(row.targets) if target >= 0]
    targets = [row.targets[place] for place in places]
    (found,) = log_probs(model, [RoutedRow(row, ("tagger",))], [0])
    (-found.sum()).backward()  # type: ignore[no-untyped-call]
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        states = model.hidden(ids, torch.ones_like(ids), adapters="tagger").last_hidden_state[0, places]
        head = model.adapter("tagger").head
        assert head is not None
        weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
        probabilities = torch.softmax(states @ weight.T + bias, dim=1)
        slope = probabilities - torch.eye(5, dtype=torch.float64)[targets]
    torch.testing.assert_close(found.detach(), probabilities[range(len(places)), targets].log())
    torch.testing.assert_close(weight.grad, slope.T @ states)
    torch.testing.assert_close(bias.grad, slope.sum(0))


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_sequence_to_sequence_loss_is_the_familys_own(family: str, adapter: str | None) -> None:
    model = AdaptedModel(make_base(family))
    randomise(model.add("a", LoRA(rank=2)))
    draw = random.Random(4)
    rows = [two_sequences(draw, number) for number in range(5)]
    routed = [RoutedRow(row, (adapter,) if adapter else ()) for row in rows]
    expected = []
    for row in rows:
        source, ids = torch.tensor([row.source_ids]), torch.tensor([row.ids])
        output = model(source, adapters=adapter, decoder_input_ids=ids[:, :-1], labels=ids[:, 1:])
        expected.append(-output.loss * (len(row.ids) - 1))
    found = log_probs(model, routed, list(range(5)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.sum(), other, rtol=1e-5, atol=1e-5)
    if adapter:
        torch.stack([one.sum() for one in found]).sum().backward()
        ours = gradients([model.adapter("a")])
        model.adapter("a").zero_grad()
        torch.stack(expected).sum().backward()
        for name, gradient in gradients([model.adapter("a")]).items():
            assert relative(ours[name], gradient) < 1e-5, name


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_loss_of_masked_tokens_is_the_familys_own(family: str, adapter: str | None) -> None:
    model = AdaptedModel(make_base(family))
    randomise(model.add("a", LoRA(rank=2)))
    draw = random.Random(5)
    rows = [masked_row(draw, number) for number in range(5)]
    found = log_probs(model, [RoutedRow(row, (adapter,) if adapter else ()) for row in rows], list(range(5)))
    for row, one in zip(rows, found, strict=True):
        assert row.targets is not None
        labels = torch.tensor([[target if target >= 0 else IGNORED for target in row.targets]])
        output = model(torch.tensor([row.ids]), adapters=adapter, labels=labels)
        torch.testing.assert_close(one.mean(), -output.loss, rtol=1e-5, atol=1e-5)


def test_rows_with_two_sequences_are_cut_by_both_lengths() -> None:
    draw = random.Random(6)
    rows = [RoutedRow(two_sequences(draw, number), ()) for number in range(20)]
    batches = plan_micro_batches(rows, 60)
    assert sorted(index for batch in batches for index in batch) == list(range(20))
    model = AdaptedModel(make_base("t5"))
    sizes = [build_micro_batch(model, rows, batch).padded.size for batch in batches]
    assert max(sizes) <= 60
    assert len(batches) > 5


def test_scores_tell_the_predicted_class() -> None:
    model = model_with_heads("bert")
    rows = mixed_rows("bert")
    for row, score in zip(rows, score_rows(model, rows, 64), strict=True):
        ids = torch.tensor([row.row.ids])
        with torch.no_grad():
            states = model.hidden(ids, torch.ones_like(ids), adapters=[row.stack]).last_hidden_state[0]
            name = model.head_of(row.stack)
            head = None if name is None else model.adapter(name).head
            logits = model.score(states) if head is None else head(states)
        targets = torch.tensor(row.row.targets)
        learnt = (targets >= 0).nonzero().squeeze(1)
        loss = cross_entropy(logits[learnt], targets[learnt], reduction="sum")
        assert score.log_prob == pytest.approx(-float(loss), rel=1e-4)
        best = logits[learnt].argmax(1)
        assert score.predicted == (() if head is None else tuple(best.tolist()))
        assert score.hits == int((best == targets[learnt]).sum())


@pytest.mark.parametrize("family", ["llama", "bare_bert"])
def test_a_head_is_saved_beside_its_adapter(family: str, tmp_path: Path) -> None:
    model = model_with_heads(family)
    folder = model.save("classifier", tmp_path / "classifier")
    assert model.load(folder, "again") == "again"
    row = class_row(random.Random(7), "classifier")
    one, other = (log_probs(model, [RoutedRow(row, (name,))], [0])[0] for name in ("classifier", "again"))
    assert torch.equal(one, other)
    (folder / "head.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"head.safetensors is cut short"):
        model.load(folder, "third")


@pytest.mark.parametrize("family", ["bert", "t5", "bart"])
def test_dropout_of_a_row_does_not_depend_on_the_batch(family: str) -> None:
    model = AdaptedModel(make_base(family))
    randomise(model.add("a", LoRA(rank=2, dropout=0.4)))
    draw = random.Random(8)
    make = two_sequences if family in ENCODER_DECODERS else masked_row
    rows = [RoutedRow(make(draw, number), ("a",), (("a", 17 + number),)) for number in range(5)]
    together = log_probs(model, rows, [3, 0, 4, 1, 2])
    for one, index in zip(together, [3, 0, 4, 1, 2], strict=True):
        (alone,) = log_probs(model, rows, [index])
        assert relative(one, alone) < 1e-5
        (still,) = log_probs(model, [replace(rows[index], seeds=())], [0])
        assert relative(one, still) > 1e-3


@pytest.mark.parametrize("family", ["bert", "bare_bert", "llama"])
def test_training_beside_others_equals_training_alone(family: str) -> None:
    """20 steps in float64: heads of other widths, and answers, in the same micro-batches."""
    names = [name for name in ("tokens", *CLASSES) if not (name == "tokens" and family == "bare_bert")]
    draw = random.Random(9)
    plain = token_row if family == "llama" else masked_row
    rows = {
        name: tuple(class_row(draw, name, n) if name in CLASSES else plain(draw, n) for n in range(8)) for name in names
    }
    settings = AdapterTraining(learning_rate=0.01, batch_rows=2, epochs=5)
    tasks = {name: Task(name, rows[name], settings, held_out=rows[name][:2]) for name in names}
    together = model_with_heads(family, torch.float64)
    run(together, list(tasks.values()), RunSettings(micro_batch_tokens=64))
    for name in names:
        alone = model_with_heads(family, torch.float64)
        before = weights(alone, name)
        run(alone, [tasks[name]], RunSettings(micro_batch_tokens=100))
        assert difference(weights(alone, name), weights(together, name)) < 1e-7
        assert difference(weights(alone, name), before) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta", "bare_bert", *ENCODER_DECODERS])
def test_every_method_is_trained_beside_the_others_as_alone(family: str) -> None:
    """With a head each, or on two sequences: log-probabilities and gradients of one batch of all methods."""
    model = AdaptedModel(make_base(family))
    two = family in ENCODER_DECODERS
    draw = random.Random(10)
    rows: list[RoutedRow] = []
    for seed, (name, config) in enumerate(METHODS.items()):
        with suppress(UserError):  # the base lacks the method's place
            randomise(model.add(name, config, classes=None if two else CLASSES["classifier"]), seed=seed + 1)
            row = two_sequences(draw) if two else class_row(draw, "classifier")
            rows.append(RoutedRow(row, (name,)))
    order = draw.sample(range(len(rows)), len(rows))
    alone = [log_probs(model, rows, [index])[0] for index in order]
    weigh(alone, order).backward()  # type: ignore[no-untyped-call]
    expected = gradients(model.adapters.values())
    for adapter in model.adapters.values():
        adapter.zero_grad()
    together = log_probs(model, rows, order)
    weigh(together, order).backward()  # type: ignore[no-untyped-call]
    found = gradients(model.adapters.values())
    for one, other in zip(together, alone, strict=True):
        assert relative(one, other) < 1e-5
    assert_gradients_close(found, expected, 1e-5)

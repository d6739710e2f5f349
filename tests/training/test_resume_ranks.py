"""Methods that change in training, stopped and resumed: the same bits, across the shrinking of the matrices too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import AdaLoRA, AdaptedModel, DyLoRA
from graftlm.adapters.method import MethodConfig
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.training.loop import train
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.families import randomise
from tests.training.work import after_round, difference, make_rows, model_with, same_bits, weights

STEPS, SHRINKS_AT = 12, 8
CONFIGS: dict[str, MethodConfig] = {
    "ada": AdaLoRA(init_rank=4, target_rank=1, t_init=2, t_final=STEPS - SHRINKS_AT, delta_t=2, dropout=0.2),
    "dy": DyLoRA(rank=4, dropout=0.1),
    "frozen": DyLoRA(rank=4, min_rank=2, freeze_lower=True),
}
SETTINGS = RunSettings(eval_every=3, save_every=5, micro_batch_tokens=48)


def tasks() -> list[Task]:
    settings = AdapterTraining(learning_rate=2e-2, batch_rows=3, epochs=9, max_steps=STEPS, weight_decay=0.1)
    return [
        Task(name, make_rows(11, seed=number), settings, held_out=make_rows(11, seed=number)[:3])
        for number, name in enumerate(CONFIGS)
    ]


def life(folder: Path, **options: Any) -> tuple[AdaptedModel, dict[str, Any]] | None:
    """A process's life; what came of it where it came to the end."""
    model = model_with(CONFIGS, dtype=torch.float32)  # type: ignore[arg-type]
    outcome = train(model, tasks(), SETTINGS, checkpoints=folder / "checkpoints", resume=True, **options)
    if outcome.interrupted:
        return None
    return model, {name: [progress.best_step, progress.history] for name, progress in outcome.progress.items()}


def saved(model: AdaptedModel, folder: Path) -> dict[str, bytes]:
    """Every byte that is written of the adapters."""
    found = {}
    for name in CONFIGS:
        model.save(name, folder / name)
        found |= {f"{name}/{path.name}": path.read_bytes() for path in sorted((folder / name).iterdir())}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = life(folder)
    assert ended is not None
    ranks = ended[0].adapter("ada").ranks
    assert ranks is not None
    assert sum(ranks.values()) == len(ranks)
    assert len(set(ranks.values())) > 1
    assert ended[1]["ada"][0] >= SHRINKS_AT
    return saved(ended[0], folder), ended[1]


@pytest.mark.parametrize("number", [1, 4, 7, 8, 9, 11])
def test_stopped_before_at_and_after_the_shrinking(
    number: int, uninterrupted: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path
) -> None:
    assert life(tmp_path, should_stop=after_round(number)) is None
    ended = life(tmp_path)
    assert ended is not None
    assert (saved(ended[0], tmp_path), ended[1]) == uninterrupted


def test_stopped_after_every_round(uninterrupted: tuple[dict[str, bytes], dict[str, Any]], tmp_path: Path) -> None:
    lives = 1
    while (ended := life(tmp_path, should_stop=lambda: True)) is None:
        lives += 1
    assert lives == STEPS
    assert (saved(ended[0], tmp_path), ended[1]) == uninterrupted


@pytest.mark.parametrize("settings", [{"init_rank": 5}, {"targets": ["q_proj", "down_proj"]}])
@pytest.mark.parametrize("rounds", [4, 10])
def test_another_runs_checkpoint_is_refused(rounds: int, settings: dict[str, Any], tmp_path: Path) -> None:
    """Before and after the matrices shrank."""
    config, one = CONFIGS["ada"].model_copy(update={"targets": ["q_proj", "up_proj"]}), tasks()[0]
    train(model_with({"ada": config}), [one], checkpoints=tmp_path, should_stop=after_round(rounds))  # type: ignore[dict-item]
    other = model_with({"ada": config.model_copy(update=settings)})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="another run"):
        train(other, [one], checkpoints=tmp_path, resume=True)


def classified(name: str) -> Task:
    """Rows of which a head is to tell the class, from three."""
    rows = tuple(
        EncodedRow(row.ids, [False] * len(row.ids), row.source, row.row, [*([-1] * (len(row.ids) - 1)), row.ids[0] % 3])
        for row in make_rows(11, seed=4)
    )
    return Task(name, rows, tasks()[0].settings, held_out=rows[:3])


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("number", [5, 8, 10])
def test_with_a_head_of_its_own(number: int, name: str, tmp_path: Path) -> None:
    def headed() -> AdaptedModel:
        model = model_with({}, dtype=torch.float32)
        randomise(model.add(name, CONFIGS[name], classes=3), seed=1)
        return model

    whole, first, second = headed(), headed(), headed()
    start = weights(whole, name)
    train(whole, [classified(name)], SETTINGS)
    assert difference({"x": start["head.weight"]}, {"x": weights(whole, name)["head.weight"]}) > 1e-3
    assert train(first, [classified(name)], SETTINGS, checkpoints=tmp_path, should_stop=after_round(number)).interrupted
    train(second, [classified(name)], SETTINGS, checkpoints=tmp_path, resume=True)
    assert same_bits(weights(whole, name), weights(second, name))

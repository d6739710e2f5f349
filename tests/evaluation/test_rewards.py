"""Reward adapters as functions: the scale, weights of criteria, rendering as in training, and judges that take them."""

from __future__ import annotations

import math

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.heads import RewardHead
from graftlm.data.instances import Message
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError
from graftlm.evaluation.judges import RewardJudge
from graftlm.evaluation.rewards import reward_model
from graftlm.evaluation.side_by_side import Duel
from tests.families import randomise

ROWS = [
    ((Message("user", "Tell me of the cat."),), "It sleeps."),
    ((Message("user", "And the dog?"),), "It runs away."),
    ((Message("user", "Tell me of the cat."),), "No."),
]


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    found = AdaptedModel.from_pretrained("tiny")
    randomise(found.add("r", LoRA(rank=2), criteria=2), seed=1)
    found.notes["r"] = {"head": {"type": "reward", "labels": ["helpful", "harmless"]}}
    found.add("plain", LoRA(rank=2))
    return found


def test_rewards_are_the_heads_at_the_last_token(model: AdaptedModel) -> None:
    reward = reward_model(model, "r")
    raw = reward.rewards(ROWS, normalised=False)
    assert raw.shape == (3, 2)
    assert model.tokenizer is not None
    template = resolve_chat_template("auto", model.tokenizer)
    for row, (messages, answer) in zip(raw, ROWS, strict=True):
        ids = template.render_prompt([*messages], model.tokenizer)
        ids = [*ids, *model.tokenizer(answer, add_special_tokens=False).input_ids, model.tokenizer.eos_token_id]
        states = model.hidden(torch.tensor([ids]), adapters=["r"], use_cache=False).last_hidden_state[0, -1:]
        assert torch.allclose(row.float(), reward.head(states)[0].float(), rtol=1e-4, atol=1e-5)


def test_scale_and_weights(model: AdaptedModel) -> None:
    head = model.adapter("r").head
    assert isinstance(head, RewardHead)
    raw = reward_model(model, "r").rewards(ROWS, normalised=False)
    head.set_scale(raw.mean(0), raw.std(0, correction=0))
    found = reward_model(model, "r").rewards(ROWS)
    assert torch.allclose(found.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.square().mean(0), torch.ones(2, dtype=torch.float64), atol=1e-5)
    assert reward_model(model, "r", weights={"harmless": 2.0})(ROWS) == pytest.approx((2 * found[:, 1]).tolist())
    assert reward_model(model, "r")(ROWS) == pytest.approx(found.mean(1).tolist())
    with pytest.raises(UserError, match="'harmles'"):
        reward_model(model, "r", weights={"harmles": 1.0})


def test_beside_others_and_in_any_order(model: AdaptedModel) -> None:
    reward = reward_model(model, "r", max_tokens=1)
    assert reward(ROWS) == pytest.approx(reward_model(model, "r")(ROWS[::-1])[::-1], rel=1e-4, abs=1e-4)


def test_what_cannot_be_read_is_nan(model: AdaptedModel) -> None:
    long = (Message("user", "cat " * (model.context_length + 5)),)
    first, second = reward_model(model, "r")([(long, "Yes."), ROWS[0]])
    assert math.isnan(first)
    assert math.isfinite(second)


def test_a_judge_takes_it(model: AdaptedModel) -> None:
    reward = reward_model(model, "r")
    judge = RewardJudge("r", reward, reward.identity)
    better, worse = sorted((ROWS[0], ROWS[2]), key=lambda row: -reward([row])[0])
    (verdict,) = judge.verdicts([Duel(ROWS[0][0], worse[1], better[1])])
    assert verdict.outcome == "win"


def test_its_identity_is_its_parameters(model: AdaptedModel) -> None:
    before = reward_model(model, "r").identity
    assert before == reward_model(model, "r").identity
    assert before != reward_model(model, "r", weights={"helpful": 1.0}).identity


def test_without_a_reward_head(model: AdaptedModel) -> None:
    with pytest.raises(UserError, match="'plain' has no reward head"):
        reward_model(model, "plain")

"""The same numbers as trl's: its trainers' own loss methods, run on log-probabilities instead of a model."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graftlm.objectives import (
    StepSize,
    dpo_loss,
    entropy,
    grpo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    reward_loss,
    rloo_loss,
    row_sums,
    simpo_loss,
    spread,
    step_share,
)

pytest.importorskip("trl", minversion="1.16")

CHOSEN = torch.tensor([-0.3, -2.5, -1.1, -0.02])
REJECTED = torch.tensor([-1.7, -0.4, -1.3, -4.0])
#: Answers of 3, 5, 2 and 4 tokens in 5 places.
MASK = torch.arange(5) < torch.tensor([3, 5, 2, 4])[:, None]
COUNTS = MASK.sum(1)


def numbers(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Peer(SimpleNamespace):
    """What a trainer's loss method reads of itself; whatever else it asks for is off."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def peer(**settings: Any) -> Any:
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        sync_gradients=True,
        gather=lambda value: value,
        gather_for_metrics=lambda value: value,
        reduce=lambda value, reduction: value,
    )
    return Peer(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def agree(ours: torch.Tensor, theirs: torch.Tensor, leaf: torch.Tensor) -> None:
    """The value, and the gradient that goes to the policy."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(ours, leaf, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    assert mine.abs().max() > 1e-4, "nothing is compared"
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def outputs(log_probs: torch.Tensor) -> SimpleNamespace:
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.mark.parametrize(
    ("loss_type", "peers_type", "smoothing"),
    [
        ("sigmoid", "sigmoid", 0.0),
        ("sigmoid_per_token", "sigmoid_norm", 0.0),
        ("hinge", "hinge", 0.0),
        ("ipo_per_token", "ipo", 0.0),
        ("robust", "robust", 0.2),
    ],
)
def test_dpo(loss_type: str, peers_type: str, smoothing: float) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    policy = numbers(2 * 2, 5, seed=0).requires_grad_()  # two pairs: first the chosen, then the rejected answers
    mask = torch.cat([torch.zeros(4, 1, dtype=torch.bool), MASK], 1)
    reference = numbers(4, seed=1)
    inputs = {
        "input_ids": torch.zeros(4, 6, dtype=torch.int64),
        "attention_mask": torch.ones(4, 6, dtype=torch.int64),
        "completion_mask": mask.long(),
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }
    trainer = peer(
        beta=0.3,
        loss_types=[peers_type],
        loss_weights=[1.0],
        label_smoothing=smoothing,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
    )
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: outputs(policy * MASK), inputs, False)
    ratios = (policy * MASK).sum(1) - reference
    ours = dpo_loss(
        ratios[:2],
        ratios[2:],
        beta=0.3,
        loss_type=loss_type,  # type: ignore[arg-type]
        label_smoothing=smoothing,
        chosen_tokens=COUNTS[:2],
        rejected_tokens=COUNTS[2:],
    ).mean()
    agree(ours, theirs, policy)


@pytest.mark.parametrize(
    ("loss_type", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0), ("simpo", 0.0)]
)
def test_summed_forms_and_simpo(loss_type: str, smoothing: float) -> None:
    """CPO's function is that of DPO with log-probabilities in place of log-ratios."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    chosen = CHOSEN.clone().requires_grad_()
    trainer = peer(beta=0.7, alpha=0.0, loss_type=loss_type, simpo_gamma=0.4, label_smoothing=smoothing)
    theirs, _, _ = CPOTrainer.cpo_loss(trainer, chosen, REJECTED)
    if loss_type == "simpo":
        ours = simpo_loss(chosen, REJECTED, beta=0.7, margin=0.4)
    else:
        ours = dpo_loss(chosen, REJECTED, beta=0.7, loss_type=loss_type, label_smoothing=smoothing)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs)
    agree(ours.sum(), theirs.sum(), chosen)


def test_orpo() -> None:
    """trl's term has the sign of a reward, and is taken off the loss of the better answers."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    chosen = CHOSEN.clone().requires_grad_()
    theirs = -chosen - ORPOTrainer.odds_ratio_loss(peer(beta=0.2), chosen, REJECTED)[0]
    ours = orpo_loss(chosen, REJECTED, beta=0.2)
    torch.testing.assert_close(ours, theirs)
    agree(ours.sum(), theirs.sum(), chosen)


@pytest.mark.parametrize("shift", [-2.0, 2.0], ids=["z0 is 0", "z0 above 0"])
def test_kto(shift: float) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    policy, reference = numbers(4, 5, seed=0).requires_grad_(), numbers(4, seed=1)
    mismatched = numbers(4, 5, seed=2) * MASK
    reference_kl = mismatched.sum(1) - shift
    good = torch.tensor([True, False, False, True])
    inputs = {
        "input_ids": torch.zeros(4, 6, dtype=torch.int64),
        "attention_mask": torch.ones(4, 6, dtype=torch.int64),
        "completion_mask": torch.cat([torch.zeros(4, 1, dtype=torch.bool), MASK], 1).long(),
        "label": good,
        "ref_logps": reference,
        "ref_KL_logps": reference_kl,
    }
    trainer = peer(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.5,
        undesirable_weight=0.7,
        calculate_KL=True,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: mismatched.sum(1),
    )
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: outputs(policy * MASK), inputs, False)
    z0 = kto_reference_point(mismatched.sum(1) - reference_kl)
    assert z0.item() == pytest.approx(max(0.0, shift))
    ratios = (policy * MASK).sum(1) - reference
    ours = kto_loss(ratios, good, z0, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    agree(ours.mean(), theirs, policy)


def test_reward() -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    rewards = numbers(8, 1, seed=0).requires_grad_()
    margin = torch.tensor([0.0, 0.5, 1.0, 2.0])
    trainer = peer(args=SimpleNamespace(center_rewards_coefficient=0.01))
    inputs = {"margin": margin, "attention_mask": torch.ones(8, 3)}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards), inputs)
    ours = reward_loss(rewards[:4, 0], rewards[4:, 0], margin=margin, centring=0.01).mean()
    agree(ours, theirs, rewards)


def rollout() -> tuple[torch.Tensor, dict[str, Any]]:
    """Log-probabilities of the policy, and the inputs of trl's losses; ratios on both sides of every clip."""
    policy = numbers(4, 5, seed=0, scale=0.5).requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(4, 2, dtype=torch.int64),
        "prompt_mask": torch.ones(4, 2, dtype=torch.int64),
        "completion_ids": torch.zeros(4, 5, dtype=torch.int64),
        "completion_mask": MASK.long(),
        "advantages": torch.tensor([1.2, -0.7, 0.4, -2.0]),
        "old_per_token_logps": policy.detach() + numbers(4, 5, seed=1, scale=0.3),
        "ref_per_token_logps": policy.detach() + numbers(4, 5, seed=2, scale=0.5),
        "num_items_in_batch": COUNTS.sum(),
    }
    return policy, inputs


@pytest.mark.parametrize(
    ("form", "normalisation", "clip_high", "kl_weight"),
    [("grpo", "row", 0.2, 0.1), ("dapo", "token", 0.28, 0.0), ("dr_grpo", "constant", 0.2, 0.0)],
)
def test_grpo_and_its_forms(form: str, normalisation: str, clip_high: float, kl_weight: float) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    policy, inputs = rollout()
    trainer = peer(
        loss_type=form,
        beta=kl_weight,
        epsilon_low=0.2,
        epsilon_high=clip_high,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        max_completion_length=7,
        current_gradient_accumulation_steps=1,
        args=Peer(steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros(4, 5), None),
    )
    theirs = GRPOTrainer._compute_loss(trainer, None, inputs)
    terms = grpo_loss(
        policy[MASK],
        inputs["old_per_token_logps"][MASK],
        spread(inputs["advantages"], COUNTS),
        inputs["ref_per_token_logps"][MASK],
        clip_high=clip_high,
        kl_weight=kl_weight,
    )
    step = StepSize(rows=4, tokens=int(COUNTS.sum()))
    ours = step_share(terms, COUNTS, step, normalisation, max_tokens=7)  # type: ignore[arg-type]
    agree(ours, theirs, policy)


def test_rloo() -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    policy, inputs = rollout()
    old = inputs["old_per_token_logps"][MASK]
    inputs["old_logps"] = row_sums(old, COUNTS)
    trainer = peer(
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros(4, 5), None),
    )
    theirs = RLOOTrainer._compute_loss(trainer, None, inputs)
    agree(rloo_loss(policy[MASK], old, inputs["advantages"], COUNTS).mean(), theirs, policy)


def test_entropy() -> None:
    from trl.trainer.utils import entropy_from_logits

    logits = numbers(3, 11, seed=0, scale=3.0)
    torch.testing.assert_close(entropy(logits), entropy_from_logits(logits))

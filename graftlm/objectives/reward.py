"""Losses of reward models: from pairs, ranked lists and ratings; and the scale of what they put out.

All give a term a pair, list or rating. With one head per criterion, rewards are (rows, criteria), and so are the terms:
criteria are trained together and weighted at use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch.nn.functional import logsigmoid

from graftlm.errors import UserError
from graftlm.objectives.checks import check_finite, check_not_negative, check_shapes


def reward_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    centring: float = 0.0,
) -> torch.Tensor:
    """−log σ(r⁺ − r⁻ − margin) + centring × (r⁺ + r⁻)² of a pair.

    Bradley and Terry's model (Ouyang et al. 2022, eq. 1 with K = 2); the margin: Touvron et al. 2023, eq. 2; the
    centring term, which keeps rewards near 0: Eisenstein et al. 2023, eq. 2.

    Args:
        chosen: (pairs,) or (pairs, criteria) rewards of the better answers, any floating dtype.
        rejected: the same shape.
        margin: a number, or one a pair of the same shape: by how much the better one is better.

    Returns:
        The same shape and dtype, a term a pair; nothing is reduced.

    Raises:
        UserError: ``centring`` is negative.
        ValueError: shapes differ.
    """
    check_shapes(chosen=chosen, rejected=rejected)
    check_not_negative(centring=centring)
    if isinstance(margin, torch.Tensor) and margin.dim():
        check_shapes(chosen=chosen, margin=margin)
    terms = -logsigmoid(chosen - rejected - margin)
    return terms + centring * (chosen + rejected).square() if centring else terms


def ranked_reward_loss(
    rewards: torch.Tensor,
    counts: Sequence[int],
    *,
    ranks: torch.Tensor | None = None,
    margin: float = 0.0,
    centring: float = 0.0,
) -> torch.Tensor:
    """The mean of :func:`reward_loss` over all K(K − 1)/2 comparisons of a list: one element, one forward an answer.

    Ouyang et al. 2022, eq. 1. Answers of equal rank are not compared, and the mean is over the comparisons made.

    Args:
        rewards: (answers,) of all lists, one list after the other, any floating dtype.
        counts: how many answers each list has.
        ranks: (answers,) numbers, the lowest is the best; left out, every list stands best first.

    Returns:
        (lists,) of the same dtype, a term a list.

    Raises:
        UserError: a list has nothing to compare: a single answer, or all of one rank.
        ValueError: shapes differ, or the counts do not add up to the answers.
    """
    check_shapes(rewards=rewards, ranks=ranks)
    if sum(counts) != len(rewards):
        raise ValueError(f"the counts of {len(counts)} lists add up to {sum(counts)}, not to {len(rewards)} answers")
    places = torch.arange(len(rewards), device=rewards.device) if ranks is None else ranks
    terms = []
    for number, (start, stop) in enumerate(pairwise(accumulate(counts, initial=0))):
        own, order = rewards[start:stop], places[start:stop]
        better, worse = (order[:, None] < order[None, :]).nonzero(as_tuple=True)
        if not len(better):
            what = "a single answer" if len(own) < 2 else "answers of one rank alone"
            raise UserError(f"ranked list {number} has {what}: nothing to compare", hint="Leave such lists out.")
        terms.append(reward_loss(own[better], own[worse], margin=margin, centring=centring).mean())
    return torch.stack(terms) if terms else rewards.new_zeros(0)


def rating_loss(rewards: torch.Tensor, ratings: torch.Tensor, *, rated: torch.Tensor | None = None) -> torch.Tensor:
    """(r − rating)² / 2 of each rating, for answers that were rated by criterion instead of compared.

    Least squares: the mean rating is its minimum. What was not rated gives a term of 0 and no gradient, whatever
    stands there; divide each criterion's sum by how often it was rated in the step.

    Args:
        rewards: (rows, criteria) or (rows,), any floating dtype.
        ratings: the same shape; on the scale that the rewards shall have.
        rated: the same shape, bool; left out, everything is rated.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(rewards=rewards, ratings=ratings, rated=rated)
    error = rewards - ratings.detach()
    if rated is not None:
        error = error.masked_fill(~rated, 0.0)
    return error.square() / 2


@dataclass(frozen=True)
class RewardScale:
    """(reward − mean) / deviation; a number each, or (criteria,)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (…) or (…, criteria) on the new scale, the same shape."""
        return (rewards - self.mean) / self.deviation


@torch.no_grad()
def reward_scale(rewards: torch.Tensor) -> RewardScale:
    """The scale on which these rewards, of reference answers, have mean 0 and variance 1 (dividing by n).

    Ouyang et al. 2022, section 3.5, shift the mean; Ziegler et al. 2019, section 2.1, set the variance too.

    Args:
        rewards: (rows,) or (rows, criteria), any floating dtype; every criterion has a scale of its own.

    Raises:
        UserError: there are fewer than two, one is not finite, or all of a criterion are equal.
    """
    if len(rewards) < 2:
        raise UserError(f"a scale of rewards needs two or more of them, and there are {len(rewards)}")
    check_finite("rewards", rewards)
    flat = rewards.amax(0) == rewards.amin(0)
    if bool(flat.any()):
        which = "" if rewards.dim() == 1 else f" of criterion {int(flat.nonzero()[0, 0])}"
        raise UserError(
            f"all {len(rewards)} rewards{which} are equal: they have no variance",
            hint="See that the reward head was trained, and that the reference answers differ.",
        )
    return RewardScale(rewards.mean(0), rewards.std(0, correction=0))

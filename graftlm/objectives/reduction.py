"""From terms of tokens to terms of rows, and to a micro-batch's share of its adapter's step.

Every loss is a sum divided by numbers that belong to the whole optimizer step of one adapter. So the shares of all
micro-batches add up to the step's loss, however it was cut. Tokens stand flat, row after row, as the loop has them;
of a padded tensor (rows, time) with its mask, ``terms[mask]`` is that form and ``mask.sum(-1)`` the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from graftlm.errors import unknown_name
from graftlm.objectives.checks import check_positive

Normalisation = Literal["row", "token", "constant"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)


@dataclass(frozen=True)
class StepSize:
    """How much one adapter's whole optimizer step has: rows, and learnt tokens in them."""

    rows: int
    tokens: int


def _repeats(counts: Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(counts, dtype=torch.int64, device=device)


def spread(values: torch.Tensor, counts: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """A row's value for each of its tokens: values (rows,), counts (rows,) → (tokens,), the same dtype."""
    return values.repeat_interleave(_repeats(counts, values.device), dim=0)


def row_sums(terms: torch.Tensor, counts: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """The sum of each row's tokens: terms (tokens,), counts (rows,) int64 → (rows,), the same dtype.

    Raises:
        ValueError: the counts do not add up to the tokens.
    """
    repeats = _repeats(counts, terms.device)
    if int(repeats.sum()) != len(terms):
        raise ValueError(
            f"the counts of {len(repeats)} rows add up to {int(repeats.sum())}, not to {len(terms)} tokens"
        )
    owner = torch.arange(len(repeats), device=terms.device).repeat_interleave(repeats)
    return terms.new_zeros(len(repeats)).index_add(0, owner, terms)


def step_share(
    terms: torch.Tensor,
    counts: Sequence[int] | torch.Tensor,
    step: StepSize,
    normalisation: Normalisation = "token",
    *,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """What a micro-batch's terms of tokens add to the loss of its adapter's step.

    - ``row``: each row's mean, then the mean over rows; every answer counts the same (GRPO: Shao et al. 2024, eq. 3).
    - ``token``: the mean over all tokens of the step; every token counts the same (DAPO: Yu et al. 2025, eq. 8).
    - ``constant``: the sum divided by rows × ``max_tokens``; no length enters (Dr. GRPO: Liu et al. 2025).

    Args:
        terms: (tokens,), any floating dtype.
        counts: (rows,) how many of them each row has; a row without any adds 0 but is a row.
        step: rows and tokens of the adapter's whole optimizer step, not of the micro-batch.
        max_tokens: the most tokens that an answer may have; for ``constant`` only.

    Returns:
        A scalar of the same dtype.

    Raises:
        UserError: there is no such normalisation, or ``constant`` lacks ``max_tokens``.
    """
    if normalisation == "token":
        return terms.sum() / max(1, step.tokens)
    if normalisation == "row":
        lengths = _repeats(counts, terms.device).clamp(min=1)
        return (row_sums(terms, counts) / lengths).sum() / max(1, step.rows)
    if normalisation == "constant":
        longest = 0 if max_tokens is None else max_tokens
        check_positive(max_tokens=longest)
        return terms.sum() / (max(1, step.rows) * longest)
    raise unknown_name("normalisation", normalisation, list(NORMALISATIONS))

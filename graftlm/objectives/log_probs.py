"""Log-probabilities of chosen tokens, without ever holding the logits of all positions.

Logits are made for the learnt positions only, a chunk at a time. The gradient of each log-probability with
respect to its hidden state is made in the same pass, while the chunk's logits are there: ∂ log p(t) / ∂ logits =
onehot(t) − softmax(logits). The backward pass only scales it, so any objective may follow.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from graftlm.adapters.routing import Routing

CHUNK_BYTES = 48 * 2**20
#: Smaller probabilities count as nothing in the gradient: those below 1e-38 are subnormal in float32, and a CPU
#: multiplies subnormal numbers some forty times slower.
NEGLIGIBLE = 1e-35


class Score(Protocol):
    """Hidden states (tokens, hidden) and the routing of these tokens → logits (tokens, vocabulary)."""

    def __call__(self, hidden: torch.Tensor, routing: Routing | None) -> torch.Tensor: ...


def token_log_probs(
    score: Score,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocabulary: int,
    routing: Routing | None = None,
    head_is_trained: bool = False,
) -> torch.Tensor:
    """log p(target) for each position.

    Args:
        hidden: (tokens, hidden), any floating dtype.
        targets: (tokens,) int64.
        vocabulary: how wide the logits are; sets the chunk size.
        routing: of these tokens, where an adapter changes the head.
        head_is_trained: whether the head has parameters that want gradients; its chunks are then recomputed.

    Returns:
        (tokens,) float32, or float64 for float64 hidden states.
    """
    rows = chunk_rows(vocabulary, hidden.element_size())
    if head_is_trained and torch.is_grad_enabled():
        parts = [
            checkpoint(
                _plain_log_probs,
                score,
                hidden[part],
                targets[part],
                _part(routing, part),
                use_reentrant=False,
            )
            for part in _chunks(len(targets), rows)
        ]
        return torch.cat(parts)
    result: torch.Tensor = _TokenLogProbs.apply(hidden, targets, score, routing, rows)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def token_log_probs_and_hits(
    score: Score,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocabulary: int,
    routing: Routing | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and whether the target is the likeliest token, for each position; no gradients."""
    # Made beforehand: what is kept of each chunk would split the block that its logits leave, and memory would grow.
    log_probs = torch.empty(len(targets), dtype=_upcast(hidden[:0]).dtype, device=hidden.device)
    hits = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for part in _chunks(len(targets), chunk_rows(vocabulary, hidden.element_size())):
        logits = score(hidden[part], _part(routing, part))
        log_probs[part] = _chosen(_upcast(logits), targets[part])
        hits[part] = logits.argmax(-1) == targets[part]
    return log_probs, hits


def chunk_rows(vocabulary: int, element_size: int) -> int:
    """How many positions' logits are held at a time."""
    return max(16, CHUNK_BYTES // (vocabulary * max(4, element_size)))


def _chunks(total: int, rows: int) -> list[slice]:
    pieces = max(1, -(-total // rows))
    size = max(1, -(-total // pieces))
    return [slice(start, min(start + size, total)) for start in range(0, max(1, total), size)]


def _part(routing: Routing | None, part: slice) -> Routing | None:
    return None if routing is None else routing.part(part.start, part.stop)


def _upcast(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _chosen(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)


def _plain_log_probs(
    score: Score, hidden: torch.Tensor, targets: torch.Tensor, routing: Routing | None
) -> torch.Tensor:
    return _chosen(_upcast(score(hidden, routing)), targets)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        score: Score,
        routing: Routing | None,
        rows: int,
    ) -> torch.Tensor:
        log_probs = torch.empty(len(targets), dtype=_upcast(hidden[:0]).dtype, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _chunks(len(targets), rows):
            if gradient is None:
                log_probs[part] = _plain_log_probs(score, hidden[part], targets[part], _part(routing, part))
                continue
            with torch.enable_grad():
                chunk = hidden[part].detach().requires_grad_()
                scored = score(chunk, _part(routing, part))
            every = torch.log_softmax(_upcast(scored.detach()), dim=-1)
            chosen = targets[part, None]
            log_probs[part] = every.gather(1, chosen).squeeze(1)
            # In place and negated afterwards: the chunk's logits are large, its hidden states small.
            slope = every.exp_()
            if slope.device.type == "cpu" and slope.numel() and slope.amin() < NEGLIGIBLE:
                torch.threshold_(slope, NEGLIGIBLE, 0.0)
            slope.scatter_add_(1, chosen, slope.new_full(chosen.shape, -1.0))
            (negated,) = torch.autograd.grad(scored, chunk, slope.to(scored.dtype))
            gradient[part] = negated.neg_()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None, None

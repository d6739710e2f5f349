"""Choose the next tokens: pure functions on logits (rows, vocabulary) and each row's own settings.

A row is drawn with one uniform number by inverting its cumulative distribution, so its token depends on its logits,
its settings and (seed, position) alone; ``torch.multinomial`` draws a number for every word it knows and is slow.
Logits depend on the batch in their last bits (1e-7 in float32): a number that close to one of the vocabulary's
boundaries then gives the token beside it, about once in a thousand draws from flat distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftlm.adapters.routing import mix_seed
from graftlm.generation.requests import SamplingSettings

_FIRST_LOOK = 512  # likeliest tokens that are sorted first for top_p; nearly always enough
_BLOCK = 256


@dataclass(frozen=True)
class RowSettings:
    """Settings as columns: float64 and int64 tensors (rows,), and what of it any row needs at all."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition_penalty: torch.Tensor
    sampled: torch.Tensor  # (n,) the rows that are not greedy
    truncated: bool
    penalised: bool

    @staticmethod
    def of(rows: Sequence[SamplingSettings], device: torch.device | str = "cpu") -> RowSettings:
        """The settings of each row, one below the other."""

        def column(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.tensor([getattr(row, name) for row in rows], dtype=dtype, device=device)

        drawn = [number for number, row in enumerate(rows) if row.temperature > 0]
        return RowSettings(
            column("temperature"),
            column("top_k", torch.int64),
            column("top_p"),
            column("min_p"),
            column("repetition_penalty"),
            torch.tensor(drawn, dtype=torch.int64, device=device),
            any(row.top_k > 0 or row.top_p < 1.0 or row.min_p > 0.0 for row in rows),
            any(row.repetition_penalty != 1.0 for row in rows),
        )


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) of a request's new token number ``position``, the same on every machine."""
    # 52 bits: times any total, the product stays below the total.
    return (mix_seed(seed, position) >> 11) * 2.0**-52


def sample_seed(seed: int, index: int) -> int:
    """The seed of a request's sample number ``index``; the first has the request's own."""
    return mix_seed(seed, index) if index else seed


def choose(
    logits: torch.Tensor,
    settings: RowSettings,
    uniforms: torch.Tensor,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row.

    logits (rows, vocabulary) float32 or float64; uniforms (rows,) float64 in [0, 1); seen (rows, n) int64: the tokens
    of prompt and answer so far, needed where a row is penalised → tokens (rows,) int64, and their log-probabilities
    (rows,) under ``logits`` as they are. One that is not finite means that the row's logits are not.
    """
    scores = logits
    if settings.penalised and seen is not None:
        scores = penalise_repetition(logits, settings.repetition_penalty, seen)
    rows = settings.sampled
    if len(rows) < len(logits):
        tokens = scores.argmax(-1)
    else:
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(rows):
        heated = scores if len(rows) == len(scores) else scores[rows]
        heated = heated / settings.temperature[rows].to(scores.dtype)[:, None]
        if settings.truncated:
            lowest = lowest_kept(heated, settings.top_k[rows], settings.top_p[rows], settings.min_p[rows])
            heated.masked_fill_(heated < lowest[:, None], -torch.inf)
        tokens[rows] = draw(heated, uniforms[rows])
    log_probs = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
    return tokens, log_probs


def penalise_repetition(logits: torch.Tensor, penalty: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Positive logits of seen tokens divided by the row's penalty, negative ones multiplied (Keskar et al. 2019, CTRL).

    logits (rows, vocabulary), penalty (rows,), seen (rows, n) token ids, repeats allowed → (rows, vocabulary). Ids
    past the vocabulary (virtual tokens) are no tokens to write, and change nothing.
    """
    by = penalty.to(logits.dtype)[:, None]
    vocabulary = logits.shape[1]
    one_more = torch.nn.functional.pad(logits, (0, 1))  # where all ids past the vocabulary go
    seen = seen.clamp(max=vocabulary)
    found = one_more.gather(1, seen)
    return one_more.scatter(1, seen, torch.where(found > 0, found / by, found * by))[:, :vocabulary]


def lowest_kept(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The smallest score that each row may draw; tokens of equal score stay or go together.

    scores (rows, vocabulary), settings (rows,) → (rows,) in the type of ``scores``.
    """
    # min_p is relative to the likeliest token, so it is a threshold whatever top_k and top_p leave.
    lowest = scores.amax(-1) + min_p.to(scores.dtype).log()
    narrow = ((top_k > 0) | (top_p < 1.0)).nonzero().squeeze(1)
    if len(narrow):
        bound = _lowest_by_rank_and_mass(scores[narrow], top_k[narrow], top_p[narrow])
        lowest[narrow] = torch.maximum(lowest[narrow], bound)
    return lowest


def _lowest_by_rank_and_mass(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest score among the ``top_k`` first (0: all) that are preceded by less than ``top_p`` of their mass."""
    vocabulary = scores.shape[-1]
    unlimited = top_k == 0
    rank = torch.where(unlimited, vocabulary, top_k).clamp(max=vocabulary)
    needed = int(torch.where(unlimited, _FIRST_LOOK, rank).max())
    total = scores.logsumexp(-1)
    for width in (min(needed, vocabulary), min(8 * needed, vocabulary), vocabulary):
        best = scores.topk(width).values
        inside = torch.arange(width, device=scores.device) < rank[:, None]
        among = torch.where(unlimited, total, best.masked_fill(~inside, -torch.inf).logsumexp(-1))
        mass = (best - among[:, None]).exp().masked_fill(~inside, 0.0).cumsum(-1, dtype=torch.float64)
        if width == vocabulary or bool(((mass[:, -1] >= top_p) | ~unlimited).all()):
            break
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    last = (inside & (before < top_p[:, None])).sum(-1) - 1
    return best.gather(1, last[:, None]).squeeze(1)


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens (rows,) of softmax(scores) (rows, vocabulary): where its cumulative mass first exceeds ``uniforms``.

    The mass is summed by blocks, and cumulated token by token in the one block that is hit: five times as fast.
    """
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK))
    blocks = padded.view(len(scores), -1, _BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    point = uniforms[:, None] * cumulative[:, -1:]
    hit = torch.searchsorted(cumulative, point, right=True).clamp_(max=blocks.shape[1] - 1)
    inside = blocks.take_along_dim(hit[..., None], 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    point = point - torch.nn.functional.pad(cumulative, (1, 0)).gather(1, hit)
    # Rounding must not carry the point past the last token that has any mass.
    point = point.minimum(torch.nextafter(inside[:, -1:], inside.new_zeros(())))
    token = hit * _BLOCK + torch.searchsorted(inside, point, right=True)
    return token.squeeze(1).clamp_(max=scores.shape[-1] - 1)  # past the end only where scores are NaN

"""Distributions over a vocabulary, a row each: change them, cut them off, draw from them. Pure functions on tensors.

Nothing a row gets depends on the rows beside it, not in the last bit either: sums run over blocks of one size, and
over the blocks in float64.
"""

from __future__ import annotations

import numpy
import torch

_BLOCK = 256


def draw(chances: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens (rows,) int64 where the cumulative mass of ``chances`` (rows, vocabulary) first exceeds ``uniforms``.

    ``chances`` need not sum to one; ``uniforms`` (rows,) float64 in [0, 1). -1 where there is no mass, or NaN.
    The mass is summed by blocks, and cumulated token by token in the one block that is hit: five times as fast.
    """
    vocabulary = chances.shape[1]
    whole, rest = _blocks(chances)
    mass = torch.cat([whole.sum(-1), rest.sum(-1, keepdim=True)], 1).cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:]
    point = uniforms[:, None] * total
    hit = torch.searchsorted(mass, point, right=True).clamp_(max=mass.shape[1] - 1)
    columns = hit * _BLOCK + torch.arange(_BLOCK, device=chances.device)
    inside = chances.gather(1, columns.clamp(max=vocabulary - 1)).masked_fill_(columns >= vocabulary, 0.0)
    inside = inside.cumsum(-1, dtype=torch.float64)
    point = point - torch.nn.functional.pad(mass, (1, 0)).gather(1, hit)
    # Rounding must not carry the point past the last token that has any mass.
    point = point.minimum(torch.nextafter(inside[:, -1:], inside.new_zeros(())))
    token = hit * _BLOCK + torch.searchsorted(inside, point, right=True)
    return torch.where(total > 0, token, -1).squeeze(1)


def largest(scores: torch.Tensor) -> torch.Tensor:
    """The first of the largest of each row of (rows, vocabulary) → (rows,) int64: argmax, four times as fast on CPU."""
    vocabulary = scores.shape[1]
    whole, rest = _blocks(scores)
    peaks = whole.amax(-1)
    if rest.shape[1]:
        peaks = torch.cat([peaks, rest.amax(-1, keepdim=True)], 1)
    hit = peaks.argmax(-1, keepdim=True)
    columns = (hit * _BLOCK + torch.arange(_BLOCK, device=scores.device)).clamp_(max=vocabulary - 1)
    return (hit.squeeze(1) * _BLOCK + scores.gather(1, columns).argmax(-1)).clamp_(max=vocabulary - 1)


def truncate_(chances: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> None:
    """Set to 0 in place what ``top_k``, then ``top_p`` of what that left, then ``min_p`` leave out.

    chances (rows, vocabulary), each row of sum one; top_k (rows,) int64, 0 is off; top_p and min_p (rows,) float64,
    1 and 0 are off. Tokens of equal chance stay or go together. At least one token stays.
    """
    # min_p is relative to the likeliest token, so it is a threshold whatever top_k and top_p leave.
    lowest = chances.amax(-1, keepdim=True) * min_p.to(chances.dtype)[:, None]
    narrowed = bool((top_p < 1.0).any())
    if narrowed or bool((top_k > 0).any()):
        ascending = _sorted(chances)
        rank = torch.where(top_k > 0, top_k, chances.shape[1]).clamp(max=chances.shape[1])
        bound = ascending.gather(1, chances.shape[1] - rank[:, None])
        if narrowed:
            _clear_below_(ascending, bound)
            # From below: what is left out has a mass of 1 - top_p at most.
            place = draw(ascending, 1.0 - top_p).clamp_(min=0)
            bound = ascending.gather(1, place[:, None])
        lowest = torch.maximum(lowest, bound)
    _clear_below_(chances, lowest)


def _clear_below_(chances: torch.Tensor, lowest: torch.Tensor) -> None:
    """Set what is smaller than ``lowest`` (rows, 1) to 0. A product with numbers, as ``masked_fill`` is slow on CPU."""
    chances.mul_(torch.ge(chances, lowest, out=torch.empty_like(chances)))


def _sorted(values: torch.Tensor) -> torch.Tensor:
    """Each row in ascending order. numpy sorts values alone, with vector instructions: fifty times torch's speed."""
    if values.device.type == "cpu":
        return torch.from_numpy(numpy.sort(values.detach().numpy(), axis=-1))
    return values.sort(-1).values


def penalise_repetition_(scores: torch.Tensor, penalty: torch.Tensor, seen: torch.Tensor) -> None:
    """Positive scores of seen tokens divided by the row's penalty, negative ones multiplied, in place.

    (Keskar et al. 2019, CTRL.) scores (rows, vocabulary), penalty (rows,), seen (rows, n) token ids, repeats allowed.
    Ids past the vocabulary (virtual tokens, padding) are no tokens to write, and change nothing.
    """
    rows, tokens = _written(seen, scores.shape[1])
    found, by = scores[rows, tokens], penalty.to(scores.dtype)[rows]
    scores[rows, tokens] = torch.where(found > 0, found / by, found * by)


def penalise_counts_(
    scores: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor, generated: torch.Tensor
) -> None:
    """Take count * frequency + (count > 0) * presence off the score of each token, in place.

    scores (rows, vocabulary), frequency and presence (rows,), generated (rows, m) the ids that are counted; those past
    the vocabulary are not. (The OpenAI API's definition.)
    """
    rows, tokens = _written(generated, scores.shape[1])
    counts = torch.zeros_like(scores).index_put_((rows, tokens), scores.new_ones(()), accumulate=True)[rows, tokens]
    off = counts * frequency.to(scores.dtype)[rows] + presence.to(scores.dtype)[rows]
    scores[rows, tokens] = scores[rows, tokens] - off


def allow_only_(scores: torch.Tensor, bits: torch.Tensor) -> None:
    """Set to minus infinity in place what ``bits`` does not allow.

    scores (rows, vocabulary); bits (rows, words) int32, the lowest bit of a word first, a bit a token: what libraries
    of constrained output give. Tokens past the last word are not allowed; bits past the vocabulary are ignored.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, : scores.shape[1]]
    scores[:, : allowed.shape[1]].masked_fill_(allowed == 0, -torch.inf)
    scores[:, allowed.shape[1] :] = -torch.inf


def _written(ids: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and token of each of ``ids`` (rows, n) that is in the vocabulary."""
    rows, columns = (ids < vocabulary).nonzero(as_tuple=True)
    return rows, ids[rows, columns]


def _blocks(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of (rows, vocabulary): its whole blocks (rows, n, 256), and what is left over (rows, fewer than 256)."""
    number = values.shape[1] // _BLOCK
    return values[:, : number * _BLOCK].view(len(values), number, _BLOCK), values[:, number * _BLOCK :]

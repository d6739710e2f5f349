"""Choose the next tokens: from logits (rows, vocabulary) and each row's own settings.

A row is drawn with one uniform number by inverting its cumulative distribution, so its token depends on its logits,
its settings and (seed, position) alone; ``torch.multinomial`` draws a number for every word it knows and is slow.
Logits depend on the batch in their last bits (1e-7 in float32): a number that close to one of the vocabulary's
boundaries then gives the token beside it, about once in a thousand draws from flat distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from graftlm.adapters.routing import mix_seed
from graftlm.generation.distributions import (
    allow_only_,
    draw,
    largest,
    penalise_counts_,
    penalise_repetition_,
    truncate_,
)
from graftlm.generation.requests import SamplingSettings, TopTokens

_ROWS = 8  # go through each step together on CPU: what they need stays in its cache, and memory is not asked for anew


class Allowed(NamedTuple):
    """What constraints allow: the rows that have one, and their bits (len(rows), words) int32, a bit a token."""

    rows: Sequence[int]
    bits: torch.Tensor


@dataclass(frozen=True)
class RowSettings:
    """The settings of all rows, made once while the rows stay the same.

    ``penalised``: some row needs the tokens of prompt and answer; ``counted``: some row needs those of the answer.
    """

    blocks: tuple[Block, ...]
    top: dict[int, int]  # rows that want likeliest tokens, and how many
    penalised: bool
    counted: bool

    @staticmethod
    def of(rows: Sequence[SamplingSettings], device: torch.device | str = "cpu") -> RowSettings:
        """The settings of each row, one below the other."""
        step = _ROWS if torch.device(device).type == "cpu" else max(1, len(rows))
        blocks = tuple(Block.of(rows[start : start + step], start, device) for start in range(0, len(rows), step))
        return RowSettings(
            blocks,
            {number: row.top_log_probs for number, row in enumerate(rows) if row.top_log_probs},
            any(block.penalty is not None for block in blocks),
            any(block.counted is not None for block in blocks),
        )


@dataclass(frozen=True)
class Block:
    """Settings of rows that are worked on together, as columns of float64 or int64; None where no row has any."""

    part: slice  # of all rows
    sampled: list[int]  # rows that are not greedy, counted within the block
    temperature: torch.Tensor | None  # (sampled, 1)
    truncated: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None  # top_k, top_p, min_p, (sampled,) each
    biases: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None  # row, token and bias, (all biases,) each
    penalty: torch.Tensor | None  # (rows,) for repetition
    counted: tuple[torch.Tensor, torch.Tensor] | None  # frequency and presence penalty, (rows,) each

    @staticmethod
    def of(rows: Sequence[SamplingSettings], first: int, device: torch.device | str) -> Block:
        """The settings of ``rows``, the first of which is number ``first`` of all."""

        def column(values: Iterable[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.tensor(list(values), dtype=dtype, device=device)

        block: dict[str, Any] = dict.fromkeys(("temperature", "truncated", "biases", "penalty", "counted"))
        drawn = [row for row in rows if row.temperature > 0]
        if any(row.temperature != 1.0 for row in drawn):
            block["temperature"] = column(row.temperature for row in drawn)[:, None]
        if any(row.top_k > 0 or row.top_p < 1.0 or row.min_p > 0.0 for row in drawn):
            block["truncated"] = (
                column((row.top_k for row in drawn), torch.int64),
                column(row.top_p for row in drawn),
                column(row.min_p for row in drawn),
            )
        biases = [(number, *pair) for number, row in enumerate(rows) for pair in row.biases.items()]
        if biases:
            numbers, tokens, values = zip(*biases, strict=True)
            block["biases"] = column(numbers, torch.int64), column(tokens, torch.int64), column(values)
        if any(row.repetition_penalty != 1.0 for row in rows):
            block["penalty"] = column(row.repetition_penalty for row in rows)
        if any(row.frequency_penalty or row.presence_penalty for row in rows):
            block["counted"] = (
                column(row.frequency_penalty for row in rows),
                column(row.presence_penalty for row in rows),
            )
        sampled = [number for number, row in enumerate(rows) if row.temperature > 0]
        return Block(slice(first, first + len(rows)), sampled, **block)


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
    history: torch.Tensor | None = None,
    generated: torch.Tensor | None = None,
    allowed: Allowed | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row.

    logits (rows, vocabulary) float32 or float64; uniforms (rows,) float64 in [0, 1); history (rows, n) int64: the
    tokens of prompt and answer so far, needed where ``settings.penalised``; generated (rows, m): those of the answer,
    needed where ``settings.counted``; both filled up with any id past the vocabulary. → tokens (rows,) int64, and their
    log-probabilities (rows,) under ``logits`` as they are. One that is not finite means that the row's logits are not;
    token -1 beside one that is, that biases and constraint allow no token at all.
    """
    tokens, log_probs, _ = choose_and_tell(logits, settings, uniforms, history, generated, allowed)
    return tokens, log_probs


def choose_and_tell(
    logits: torch.Tensor,
    settings: RowSettings,
    uniforms: torch.Tensor,
    history: torch.Tensor | None = None,
    generated: torch.Tensor | None = None,
    allowed: Allowed | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`choose`, and the tokens' log-probabilities (rows,) under the distributions that they were drawn from.

    Those of greedy rows are 0: nothing is drawn there.
    """
    tokens, log_probs, drawn = zip(
        *(_choose_block(logits, block, uniforms, history, generated, allowed) for block in settings.blocks), strict=True
    )
    return torch.cat(tokens), torch.cat(log_probs), torch.cat(drawn)


def top_log_probs(logits: torch.Tensor, settings: RowSettings) -> dict[int, TopTokens]:
    """The likeliest tokens of the rows that want them, with log-probabilities under ``logits`` as they are."""
    if not settings.top:
        return {}
    most = min(max(settings.top.values()), logits.shape[1])
    values, ids = logits[list(settings.top)].log_softmax(-1).topk(most)
    return {
        row: tuple(zip(tokens[:wanted], numbers[:wanted], strict=True))
        for (row, wanted), tokens, numbers in zip(settings.top.items(), ids.tolist(), values.tolist(), strict=True)
    }


def _choose_block(
    logits: torch.Tensor,
    block: Block,
    uniforms: torch.Tensor,
    history: torch.Tensor | None,
    generated: torch.Tensor | None,
    allowed: Allowed | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`choose_and_tell` for the rows of one block; all rows come in."""
    scores = _processed(logits, block, history, generated, allowed)
    logits = logits[block.part]
    best = largest(logits)[:, None]
    chances = logits.softmax(-1)  # in one pass over the logits, and their total comes from it
    total = logits.gather(1, best) - chances.gather(1, best).log()
    tokens = best
    if scores is not None:
        tokens = largest(scores)[:, None]
        tokens = torch.where(scores.gather(1, tokens) == -torch.inf, -1, tokens)
    if block.sampled:
        rows: list[int] | slice = block.sampled if len(block.sampled) < len(logits) else slice(None)
        chances = chances[rows]
        if scores is not None or block.temperature is not None:
            heated = (logits if scores is None else scores)[rows]
            if block.temperature is not None:
                heated = heated / block.temperature.to(heated.dtype)
            chances = torch.softmax(heated, -1, out=chances)
        if block.truncated is not None:
            truncate_(chances, *block.truncated)
        tokens[rows] = draw(chances, uniforms[block.part][rows])[:, None]
    known = tokens.clamp(min=0)
    log_probs = logits.gather(1, known) - total
    drawn = torch.zeros_like(log_probs)
    if block.sampled:
        if scores is None and block.temperature is None and block.truncated is None:
            drawn[rows] = log_probs[rows]
        else:
            drawn[rows] = chances.gather(1, known[rows]).log()
            if block.truncated is not None:
                drawn[rows] -= chances.sum(-1, keepdim=True).log()
    return tokens.squeeze(1), log_probs.squeeze(1), drawn.squeeze(1)


def _processed(
    logits: torch.Tensor,
    block: Block,
    history: torch.Tensor | None,
    generated: torch.Tensor | None,
    allowed: Allowed | None,
) -> torch.Tensor | None:
    """The block's logits after biases, penalties and constraints, in transformers' order; None where there are none."""
    first, last = block.part.start, block.part.stop
    bound = [] if allowed is None else [place for place, row in enumerate(allowed.rows) if first <= row < last]
    if block.biases is None and block.penalty is None and block.counted is None and not bound:
        return None
    scores = logits[block.part].clone()
    if block.biases is not None:
        rows, tokens, bias = block.biases
        scores[rows, tokens] += bias.to(scores.dtype)
    if block.penalty is not None:
        if history is None:
            raise ValueError("rows with a repetition penalty need history")
        penalise_repetition_(scores, block.penalty, history[block.part])
    if block.counted is not None:
        if generated is None:
            raise ValueError("rows with a frequency or presence penalty need generated")
        penalise_counts_(scores, *block.counted, generated[block.part])
    if bound and allowed is not None:
        numbers = [allowed.rows[place] - first for place in bound]
        own = scores[numbers]
        allow_only_(own, allowed.bits[bound])
        scores[numbers] = own
    return scores

"""Reading prompts: in batches, in chunks, and from where earlier prompts that began alike leave off."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.generation.cache import Columns, Piece
from graftlm.generation.prefixes import BLOCK
from graftlm.generation.rows import Row

_PADDING, _LITTLE = 1.3, 128  # places a token in a batch of prompts at most; batches so small may have more
_CHUNK = 128  # positions whose logits are made at once, for prompt log-probabilities


@dataclass(eq=False)
class Job:
    """A prompt that is being read, for all ``rows`` that have it. ``piece``: what was read of it so far.

    ``key`` and ``blocks`` find it in the store of prefixes.
    """

    rows: list[Row]
    key: Hashable
    blocks: list[int]
    piece: Piece | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.rows[0].prompt

    @property
    def stack(self) -> Stack:
        return self.rows[0].stack

    @property
    def done(self) -> int:
        """How many of its tokens are read."""
        return 0 if self.piece is None else self.piece.length

    @property
    def rest(self) -> int:
        return len(self.prompt) - self.done

    @property
    def wants_log_probs(self) -> bool:
        return any(row.sampling.prompt_log_probs for row in self.rows)

    @property
    def whole(self) -> bool:
        """Whether it is read as a whole: the source of an encoder-decoder."""
        return bool(self.rows[0].start)

    def takes(self, row: Row, key: Hashable) -> bool:
        """Whether a row can share in it: the same prompt under the same adapters.

        What was read already has no log-probabilities for it.
        """
        late = self.piece is not None and row.sampling.prompt_log_probs
        return key == self.key and row.prompt == self.prompt and not late


def plan(jobs: Sequence[Job], tokens: int) -> list[Job]:
    """The jobs to go on with together: in order, with little padding, at most ``tokens`` or a part of one job.

    A prompt that shares its beginning with one before it waits, to go on from there once that is read. One that is read
    as a whole may take more.
    """
    tokens = max([tokens, *(job.rest for job in jobs[:1] if job.whole)])
    chosen: list[Job] = []
    blocks: set[int] = set()
    longest = real = 0
    for job in jobs:
        size = min(job.rest, tokens)
        widest = max(longest, size)
        padded = (len(chosen) + 1) * widest
        if chosen and (padded > tokens or padded > max(_LITTLE, _PADDING * (real + size))):
            continue
        if _shared(job, blocks) * BLOCK >= max(job.done + BLOCK, len(job.prompt) // 2):
            continue
        chosen.append(job)
        blocks |= set(job.blocks)
        longest, real = widest, real + size
    return chosen


def _shared(job: Job, blocks: set[int]) -> int:
    """How many first blocks of a job are among ``blocks``."""
    return next((number for number, block in enumerate(job.blocks) if block not in blocks), len(job.blocks))


@dataclass(frozen=True)
class Read:
    """What came of reading: ``logits`` (jobs that are done, vocabulary) of their first new tokens, in order."""

    done: list[Job]
    logits: torch.Tensor


def read(model: AdaptedModel, jobs: Sequence[Job], tokens: int) -> Read:
    """Read the next part of each job's prompt, at most ``tokens`` of it, in one pass of the model.

    Where it fails, for want of memory, the jobs are as before.
    """
    totals = [job.done + min(job.rest, tokens) for job in jobs]
    stacks = [job.stack for job in jobs]
    states, table = go_on(model, [job.prompt for job in jobs], totals, stacks, [job.piece for job in jobs])
    new = states.shape[1]
    scores = {
        job: _prompt_scores(model, job, total, states[number, new - (total - job.done) :])
        for number, (job, total) in enumerate(zip(jobs, totals, strict=True))
        if job.wants_log_probs
    }
    last = [number for number, (job, total) in enumerate(zip(jobs, totals, strict=True)) if total == len(job.prompt)]
    done = [jobs[number] for number in last]
    logits = states.new_zeros(0, model.vocabulary)
    if last:
        logits = model.score(states[last, -1], Routing.of_rows([job.stack for job in done], 1))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for number, job in enumerate(jobs):
        job.piece = table.piece(number)
        for row in job.rows if job in scores else ():
            if row.sampling.prompt_log_probs:
                row.prompt_log_probs = [*(row.prompt_log_probs or []), *scores[job]]
    return Read(done, logits)


def go_on(
    model: AdaptedModel,
    sequences: Sequence[Sequence[int]],
    totals: Sequence[int],
    stacks: Sequence[Stack],
    pieces: Sequence[Piece | None],
) -> tuple[torch.Tensor, Columns]:
    """Read the first ``totals[n]`` tokens of each sequence on from what its piece holds, in one pass of the model.

    All rows read equally many tokens, the last ones before their total: one that has less to read reads some again that
    its piece holds, or is padded on the left.

    Returns:
        the last hidden states of the tokens read, (sequences, tokens, hidden), ending at the totals; and the table of
        keys and values, with a slot for each sequence.
    """
    done = [0 if piece is None else piece.length for piece in pieces]
    new = max(total - had for total, had in zip(totals, done, strict=True))
    cached = [max(total - new, 0) for total in totals]
    table = Columns(len(sequences), max(cached) + new)
    table.start([None if piece is None else piece.cut(size) for piece, size in zip(pieces, cached, strict=True)])
    ids = torch.zeros(len(sequences), new, dtype=torch.int64)
    for number, (sequence, total) in enumerate(zip(sequences, totals, strict=True)):
        part = sequence[max(total - new, 0) : total]
        ids[number, new - len(part) :] = torch.tensor(part)
    ends = torch.tensor(totals)[:, None]
    positions = (torch.arange(-new, 0) + ends).clamp(min=0)
    mask = None
    if min(totals) < table.width:
        mask = (torch.arange(-table.width, 0) + ends >= 0).to(torch.int64).to(model.device)
    states: torch.Tensor = model.hidden(
        ids.to(model.device),
        mask,
        adapters=Routing.of_rows(stacks, new),
        past_key_values=table,
        position_ids=positions.to(model.device),
        use_cache=True,
    ).last_hidden_state
    table.finish(new, totals)
    return states, table


def _prompt_scores(model: AdaptedModel, job: Job, stop: int, states: torch.Tensor) -> list[float | None]:
    """The log-probabilities of the prompt tokens that states (tokens, hidden) before position ``stop`` predict."""
    first = stop - len(states)
    found: list[float | None] = [None] if first == 0 else []
    targets = job.prompt[first + 1 : stop + 1]
    for start in range(0, len(targets), _CHUNK):
        part = targets[start : start + _CHUNK]
        logits = model.score(states[start : start + len(part)], Routing.of_rows([job.stack], len(part)))
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        known = torch.tensor(part, device=logits.device).clamp(max=logits.shape[1] - 1)
        scores = log_probs.gather(1, known[:, None]).squeeze(1).tolist()
        found += [None if model.is_virtual(token) else score for token, score in zip(part, scores, strict=True)]
    return found

"""What all models answer to the harness's requests, computed together for the first of them that is asked.

The harness runs its tasks for one model after the other, and each asks the same. So whoever asks first gets the
answers of all computed, in shared batches over the one base; the others find theirs. What is computed is kept, in a
file where a folder is given, and a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftlm.adapters.routing import Stack
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.evaluation.harness.encoding import Conversations, Pair, PlainText
from graftlm.evaluation.harness.sampling import sampling_settings
from graftlm.evaluation.kept import Kept, Key
from graftlm.evaluation.shared_prompts import score_groups
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Request
from graftlm.generation.sources import decoder_start
from graftlm.training.forward import RoutedRow

if TYPE_CHECKING:
    from graftlm.evaluation.speakers import Opened, Speaker

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
Arguments = tuple[Any, ...]
#: The number of a job, and its answer: log p and whether greedy decoding gives it, or log p alone, or a text.
Found = Iterator[tuple[int, Any]]
MAX_TOKENS = 4096  # scored at a time
WRITE_EACH = 500  # answers


@dataclass(frozen=True)
class _Job:
    """A request that a model has not answered yet."""

    speaker: Speaker
    key: str
    arguments: Arguments


class Answers:
    """Answers to requests, by model.

    ``chat``: contexts are conversations, rendered with each model's own template. ``folder``: where they are kept.
    ``hashes``: of each model's weights, by its label; answers of other weights are not taken from the folder.
    """

    def __init__(
        self,
        opened: Opened,
        speakers: Sequence[Speaker],
        *,
        chat: bool = False,
        seed: int = 0,
        max_tokens: int = MAX_TOKENS,
        folder: Path | None = None,
        hashes: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.opened, self.speakers, self.chat, self.seed, self.max_tokens = opened, speakers, chat, seed, max_tokens
        self.say = say
        self._plain = PlainText(opened.tokenizer, opened.model.kind == "encoder-decoder")
        self._kept: dict[str, Kept] = {}
        for speaker in speakers:
            header = {
                "version": 1,
                "base": opened.model.fingerprint,
                "model": speaker.label,
                "weights": (hashes or {}).get(speaker.label, ""),
                "template": speaker.template.hash if chat else "",
                "seed": seed,
            }
            path = folder / f"{speaker.label}.jsonl" if folder is not None else None
            self._kept[speaker.label] = Kept(path, header)

    def of(self, label: str, kind: Kind, asked: Sequence[Arguments]) -> list[Any]:
        """One model's answers to requests, in their order, as the harness wants them.

        Raises:
            UserError: a request has no room in the context, or asks for what there is not.
        """
        keys = _keys(kind, asked)
        jobs = [
            _Job(speaker, key, arguments)
            for speaker in self.speakers
            for key, arguments in dict(zip(keys, asked, strict=True)).items()
            if key not in self._kept[speaker.label]
        ]
        if jobs:
            self._answer(kind, jobs)
        found = [self._kept[label][key] for key in keys]
        return [tuple(answer) for answer in found] if kind == "loglikelihood" else found

    def _answer(self, kind: Kind, jobs: Sequence[_Job]) -> None:
        models = len({job.speaker.label for job in jobs})
        self.say(f"{kind}: {len({job.key for job in jobs}):,} requests, {models} model{'s' * (models > 1)} in one pass")
        work = {
            "loglikelihood": self._score,
            "loglikelihood_rolling": self._score_texts,
            "generate_until": self._write,
        }
        new: dict[str, dict[Key, Any]] = {label: {} for label in self._kept}
        try:
            for done, (number, answer) in enumerate(work[kind](jobs), start=1):
                new[jobs[number].speaker.label][jobs[number].key] = answer
                if done % WRITE_EACH == 0:
                    self._keep(new)
        finally:
            self._keep(new)

    def _keep(self, new: Mapping[str, dict[Key, Any]]) -> None:
        for label, answers in new.items():
            self._kept[label].add(answers)
            answers.clear()

    # --- log-likelihoods ----------------------------------------------------------------------------------------

    def _score(self, jobs: Sequence[_Job]) -> Found:
        """Continuations of one context by one model are scored together, behind one reading of the context."""
        pairs = self._pairs(jobs)
        groups: dict[tuple[Stack, tuple[int, ...]], list[int]] = {}
        for number, (job, pair) in enumerate(zip(jobs, pairs, strict=True)):
            groups.setdefault((job.speaker.stack, pair.context), []).append(number)
        rows = [[self._row(jobs[number], pairs[number]) for number in numbers] for numbers in groups.values()]
        places = list(groups.values())
        for batch in score_groups(self.opened.model, rows, self.max_tokens):
            for group, scores in batch:
                for number, score in zip(places[group], scores, strict=True):
                    yield number, (score.log_prob, score.exact)

    def _pairs(self, jobs: Sequence[_Job]) -> list[Pair]:
        """What is scored, as tokens: plain text is the same for all models, a conversation for all of one template."""
        found: dict[tuple[str, Arguments], Pair] = {}
        for template, own in self._by_template(jobs).items():
            asked = list(dict.fromkeys(job.arguments[:2] for job in own))
            encoded = self._encoder(own[0].speaker).pairs([(str(one), str(two)) for one, two in asked])
            found |= {(template, arguments): pair for arguments, pair in zip(asked, encoded, strict=True)}
        return [found[self._template_of(job), job.arguments[:2]] for job in jobs]

    def _encoder(self, speaker: Speaker) -> PlainText | Conversations:
        return Conversations(speaker.template, self.opened.tokenizer, self._plain) if self.chat else self._plain

    def _template_of(self, job: _Job) -> str:
        return job.speaker.template.hash if self.chat else ""

    def _by_template(self, jobs: Sequence[_Job]) -> dict[str, list[_Job]]:
        found: dict[str, list[_Job]] = {}
        for job in jobs:
            found.setdefault(self._template_of(job), []).append(job)
        return found

    def _row(self, job: _Job, pair: Pair) -> RoutedRow:
        """A row that learns the continuation. A context that is too long loses its beginning, as in the harness."""
        stack, model = job.speaker.stack, self.opened.model
        room, length = model.room(stack), len(pair.continuation)
        begin = decoder_start(model)[:1]
        if length + len(begin) > room + (not begin):
            raise UserError(
                f"a continuation has {length:,} tokens, and {job.speaker.label} reads at most {room:,}: "
                f"{str(job.arguments[-1])[:60]!r}"
            )
        if begin:
            ids, supervised = (*begin, *pair.continuation), [False] + [True] * length
            return RoutedRow(EncodedRow(ids, supervised, "", 1, source_ids=pair.context[-room:]), stack)
        ids = (*pair.context, *pair.continuation)[-room - 1 :]
        if len(ids) <= room:
            return RoutedRow(EncodedRow(ids, [False] * (len(ids) - length) + [True] * length, "", 1), stack)
        # The last token is predicted, and never read: there is room for one more.
        targets = [-1] * (len(ids) - 1 - length) + list(ids[-length:])
        return RoutedRow(EncodedRow(ids[:-1], [False] * (len(ids) - 1), "", 1, targets=targets), stack)

    def _score_texts(self, jobs: Sequence[_Job]) -> Found:
        """Whole texts, in windows that do not overlap but for one token where they are longer than the context."""
        ids = dict(zip(texts := _firsts(jobs), self._plain.whole(texts), strict=True))
        groups = [[self._row(job, pair) for pair in self._windows(job, ids[job.arguments[0]])] for job in jobs]
        for number, rows in enumerate(groups):
            if not rows:
                yield number, 0.0
        full = [number for number, rows in enumerate(groups) if rows]
        for batch in score_groups(self.opened.model, [groups[number] for number in full], self.max_tokens):
            for place, scores in batch:
                yield full[place], sum(score.log_prob for score in scores)

    def _windows(self, job: _Job, ids: list[int]) -> list[Pair]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        room = self.opened.model.room(job.speaker.stack)
        windows = get_rolling_token_windows(ids, prefix_token=self._plain.begin, max_seq_len=room, context_len=1)
        return [Pair(tuple(context), tuple(rest)) for context, rest in map(make_disjoint_window, windows)]

    # --- written answers ----------------------------------------------------------------------------------------

    def _write(self, jobs: Sequence[_Job]) -> Found:
        """Answers that are written, all models' in the batches of one engine."""
        prompts: dict[tuple[str, str], list[int]] = {}
        for template, own in self._by_template(jobs).items():
            texts = _firsts(own)
            encoded = self._encoder(own[0].speaker).prompts(texts)
            prompts |= {(template, text): ids for text, ids in zip(texts, encoded, strict=True)}
        requests = [
            self._request(number, job, prompts[self._template_of(job), job.arguments[0]])
            for number, job in enumerate(jobs)
        ]
        engine = Engine(self.opened.model, self.opened.tokenizer)
        for event in engine.stream(requests):
            if event.completion is not None:
                number = int(event.request_id)
                if event.completion.error is not None:
                    raise UserError(f"{jobs[number].speaker.label} could not answer: {event.completion.error}")
                yield number, event.completion.text or ""

    def _request(self, number: int, job: _Job, prompt: Sequence[int]) -> Request:
        sampling = sampling_settings(job.arguments[1], job.speaker if self.chat else None, f"{self.seed} {job.key}")
        room = self.opened.model.room(job.speaker.stack)
        left = room - (0 if self._plain.two else sampling.max_new_tokens)
        if left < 1:
            raise UserError(
                f"{sampling.max_new_tokens:,} new tokens are asked for, and {job.speaker.label} reads at most {room:,}",
                hint="Set max_gen_toks in the task's generation_kwargs.",
            )
        return Request(tuple(prompt[-left:]), job.speaker.stack or None, sampling, number)


def _firsts(jobs: Sequence[_Job]) -> list[str]:
    return list(dict.fromkeys(str(job.arguments[0]) for job in jobs))


def _keys(kind: Kind, asked: Sequence[Arguments]) -> list[str]:
    """A name for each request. Samples of one prompt are told apart by their number; else equal ones are one."""
    found, times = [], dict[str, int]()
    for arguments in asked:
        text = json.dumps([kind, *arguments], ensure_ascii=False, sort_keys=True, default=str)
        number = times.get(text, 0)
        times[text] = number + (kind == "generate_until")
        found.append(hashlib.sha256(f"{text} {number}".encode("utf-8", "replace")).hexdigest()[:24])
    return found

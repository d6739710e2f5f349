"""Answers of policies to prompts: many policies at once, from one engine, with the weights that are being trained.

Every phase has an engine of its own, so that no key or value of earlier weights is left, and how much memory is free
decides nothing: the same weights, prompts and step give the same bits, in a resumed run too. What a policy draws
depends on its name, the step, the prompt and the number of the sample, not on who else answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import RowAdapters, Stack, as_stack, mix_seed
from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance, Message
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError, unknown_name
from graftlm.evaluation.speakers import Speaker
from graftlm.generation import Completion, Engine, Request, SamplingSettings
from graftlm.generation.requests import LOWEST_TEMPERATURE, FinishReason
from graftlm.generation.sources import decoder_start

ROWS = 64  # decoded together, unless something else is asked for


@dataclass(frozen=True)
class Prompt:
    """What is asked. ``row`` and ``source`` say where it stands in the data, and seed its answers; two prompts of one
    row are one prompt. ``reference``: a right answer, for rewards that compare with one.
    """

    messages: tuple[Message, ...]
    row: int
    source: str = "prompts"
    reference: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for messages to people."""
        return f"{self.source}, row {self.row}"


_ByPolicy = Sequence[tuple[Speaker, Sequence[Prompt]]]


def prompts_of(instances: Iterable[Instance]) -> list[Prompt]:
    """The prompts of instances; an answer at the end becomes the reference."""
    found = []
    for instance in instances:
        messages = instance.conversation
        answered = len(messages) > 1 and messages[-1].role == "assistant"
        asked, reference = (messages[:-1], messages[-1].content) if answered else (messages, "")
        found.append(Prompt(asked, instance.row, instance.source, reference))
    return found


def make_policy(model: AdaptedModel, name: str, template: ChatTemplate, adapters: RowAdapters = None) -> Speaker:
    """A policy that answers by ``template``: the adapter ``name``, or a stack of ``adapters`` under that name.

    Raises:
        UserError: there is no such adapter, or the model has no tokenizer.
    """
    stack = as_stack(name if adapters is None else adapters)
    for each in stack:
        model.adapter(each)
    if model.tokenizer is None:
        raise UserError("policies need a tokenizer: AdaptedModel(base, tokenizer)")
    stop = template.stop_text(model.tokenizer)
    two = model.kind == "encoder-decoder"
    ends = template.stop_ids(model.tokenizer), (stop,) if stop else ()
    return Speaker(name, stack, template, *ends, reads_source=two)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: ``n`` a prompt, each of at most ``max_new_tokens`` tokens.

    There is no truncation and no penalty here: what is sampled from must be the policy that is trained, or its gradient
    is that of another one. ``temperature`` is no exception, because scoring and training divide by it as well.
    """

    n: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= LOWEST_TEMPERATURE:
            raise UserError(
                f"temperature is {self.temperature:g}; rollouts need at least {LOWEST_TEMPERATURE:g}",
                hint="Greedy answers teach nothing: there is nothing to compare them with.",
            )
        self.settings(0)

    def settings(self, seed: int) -> SamplingSettings:
        """Those of one request.

        Raises:
            UserError: a value is out of range.
        """
        return SamplingSettings(
            n=self.n, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed, stop=self.stop
        )


@dataclass(frozen=True)
class Rollout:
    """One answer of a policy, as tokens.

    ``prompt_ids``: the prompt as the policy reads it. ``token_ids`` (n ≥ 1): the answer, its end included.
    ``log_probs`` (n): under the model as it is, at temperature 1. ``drawn_log_probs`` (n): under the distribution that
    was drawn from, at the temperature of sampling; training goes by that one, and the scoring pass is held against it.
    ``finish``: "stop" where the answer ended by itself, "length" or "context" where it was cut off.
    """

    policy: str
    stack: Stack
    prompt: Prompt
    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    drawn_log_probs: tuple[float, ...]
    finish: FinishReason
    text: str
    decoder_start: tuple[int, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.finish == "stop"

    @property
    def place(self) -> str:
        """Which one it is, for messages to people."""
        return f"{self.policy}, {self.prompt.place}, answer {self.index + 1}"

    def encoded(self) -> EncodedRow:
        """The row for scoring and training, of which the answer's tokens are learnt."""
        given = self.decoder_start or self.prompt_ids
        ids = (*given, *self.token_ids)
        supervised = [False] * len(given) + [True] * len(self.token_ids)
        source = self.prompt_ids if self.decoder_start else None
        return EncodedRow(ids, supervised, self.prompt.source, self.prompt.row, source_ids=source)


@dataclass(frozen=True)
class LeftOut:
    """A prompt that a policy could not be asked, and why."""

    policy: str
    prompt: Prompt
    reason: str


@dataclass(frozen=True)
class Rollouts:
    """The answers of one phase: policy by policy, prompt by prompt, ``n`` side by side.

    ``read`` and ``reused``: tokens of prompts that the engine read, and had read before.
    """

    answers: tuple[Rollout, ...]
    sampling: Sampling
    step: int
    left_out: tuple[LeftOut, ...] = ()
    read: int = 0
    reused: int = 0

    @property
    def policies(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(answer.policy for answer in self.answers))

    def of(self, policy: str) -> tuple[int, ...]:
        """The places of a policy's answers."""
        return tuple(place for place, answer in enumerate(self.answers) if answer.policy == policy)

    def only(self, policy: str) -> Rollouts:
        """Those of one policy."""
        return replace(
            self,
            answers=tuple(answer for answer in self.answers if answer.policy == policy),
            left_out=tuple(each for each in self.left_out if each.policy == policy),
        )

    def groups(self, places: Sequence[int] | None = None) -> list[int]:
        """A number for each answer (of those at ``places``), the same for those of one policy to one prompt."""
        numbers: dict[tuple[str, str, int], int] = {}
        chosen = self.answers if places is None else [self.answers[place] for place in places]
        return [
            numbers.setdefault((answer.policy, answer.prompt.source, answer.prompt.row), len(numbers))
            for answer in chosen
        ]


@dataclass
class _Asked:
    requests: list[Request] = field(default_factory=list)
    owners: list[tuple[Speaker, Prompt]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    longest: int = 0


def roll_out(
    model: AdaptedModel,
    policies: Sequence[Speaker],
    prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
    sampling: Sampling,
    step: int,
    *,
    max_rows: int = ROWS,
    seeds: Mapping[str, int] | None = None,
) -> Rollouts:
    """The answers of every policy to its prompts, from one engine with the weights as they are now.

    The prompt of a group is read once where the group begins together, which it does if all answers fit into
    ``max_rows``; answers that begin later read up to 16 tokens of it again. A prompt that a policy cannot be asked,
    such as one that fills the context, is left out and told.

    Args:
        policies: by :func:`make_policy`, or those of :func:`graftlm.evaluation.speakers.open_adapters`.
        prompts: the same for all policies, or those of each by its name.
        step: of the training; it seeds the answers.
        max_rows: answers that are decoded together; more take more memory.
        seeds: of policies by name, instead of that of ``sampling``.

    Raises:
        UserError: there are no policies, one cannot be asked anything, two have one name, a prompt is given twice, or
            an answer fails (numbers that are not finite, no memory).
    """
    if isinstance(prompts, Mapping):
        _check_keys(prompts, policies)
    by_policy = [(each, prompts.get(each.label, ()) if isinstance(prompts, Mapping) else prompts) for each in policies]
    _check_names(by_policy)
    if model.tokenizer is None:
        raise UserError("rollouts need a tokenizer: AdaptedModel(base, tokenizer)")
    asked = _ask(model, by_policy, sampling, step, seeds or {})
    for speaker in policies:
        if not any(owner is speaker for owner, _ in asked.owners):
            first = next((each for each in asked.left_out if each.policy == speaker.label), None)
            why = f": {first.prompt.place}: {first.reason}" if first is not None else ""
            raise UserError(
                f"{speaker.label}: it cannot be asked any prompt{why}", hint="Shorten the prompts, or give others."
            )
    # Never by what memory is free: how many rows run together may change the last bit of a number.
    engine = Engine(model, model.tokenizer, max_batch_rows=max_rows, cache_tokens=max_rows * asked.longest)
    completions = engine.run(asked.requests)
    start = decoder_start(model)
    answers = []
    for place, completion in enumerate(completions):
        number = place // sampling.n
        speaker, prompt = asked.owners[number]
        answers.append(_rollout(completion, speaker, prompt, asked.requests[number], start))
    statistics = engine.statistics
    return Rollouts(tuple(answers), sampling, step, tuple(asked.left_out), statistics.read, statistics.reused)


def _check_keys(prompts: Mapping[str, Sequence[Prompt]], policies: Sequence[Speaker]) -> None:
    names = [speaker.label for speaker in policies]
    for name in prompts:
        if name not in names:
            raise unknown_name("policy", name, names)


def _check_names(by_policy: _ByPolicy) -> None:
    names = [speaker.label for speaker, _ in by_policy]
    if not names:
        raise UserError("there are no policies to ask", hint="Make one: make_policy(model, name, template)")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two policies are called '{twice}'", hint="Seeds and statistics go by the name.")
    for speaker, own in by_policy:
        seen: set[tuple[str, int]] = set()
        for prompt in own:
            if (prompt.source, prompt.row) in seen:
                raise UserError(
                    f"{speaker.label}: {prompt.place} is there twice: its answers would be the same ones",
                    hint="Give each prompt once a step, and more answers by n.",
                )
            seen.add((prompt.source, prompt.row))


def _ask(model: AdaptedModel, by_policy: _ByPolicy, sampling: Sampling, step: int, seeds: Mapping[str, int]) -> _Asked:
    asked = _Asked()
    assert model.tokenizer is not None
    for speaker, own in by_policy:
        room = model.room(speaker.stack) + model.virtual_length(speaker.stack)
        for prompt in own:
            # By the name of its file alone: answers stay the same where the folder is another one.
            place = (prompt.source.replace("\\", "/").rpartition("/")[2], prompt.row)
            seed = mix_seed(seeds.get(speaker.label, sampling.seed), speaker.label, step, *place)
            try:
                request = speaker.request(prompt.messages, model.tokenizer, sampling.settings(seed))
            except UserError as error:
                asked.left_out.append(LeftOut(speaker.label, prompt, error.message))
                continue
            length = _length(model, speaker.stack, request.prompt_ids)
            reason = _too_long(model, length, room)
            if reason is not None:
                asked.left_out.append(LeftOut(speaker.label, prompt, reason))
                continue
            asked.requests.append(request)
            asked.owners.append((speaker, prompt))
            asked.longest = max(asked.longest, length + len(decoder_start(model)) + sampling.max_new_tokens)
    return asked


def _length(model: AdaptedModel, stack: Stack, ids: Sequence[int]) -> int:
    """How many tokens a prompt has with the virtual ones, which a template may have put there already."""
    return len(ids) + (0 if any(map(model.is_virtual, ids)) else model.virtual_length(stack))


def _too_long(model: AdaptedModel, length: int, room: int) -> str | None:
    """Why there is no room for an answer, if there is none; an encoder-decoder's has a context of its own."""
    most = model.context_length if model.kind == "encoder-decoder" else room - 1
    if length == 0:
        return "the prompt is empty"
    return None if length <= most else f"the prompt has {length:,} tokens, and there is room for {most:,}"


def _rollout(
    completion: Completion, speaker: Speaker, prompt: Prompt, request: Request, start: tuple[int, ...]
) -> Rollout:
    if completion.error is not None or not completion.token_ids:
        raise UserError(
            f"{speaker.label}, {prompt.place}: no answer: {completion.error or completion.finish_reason}",
            hint="Numbers that are not finite come from a learning rate that is too high; want of memory from too "
            "many rows (max_rows) or tokens (max_new_tokens).",
        )
    return Rollout(
        speaker.label,
        speaker.stack,
        prompt,
        completion.index,
        request.prompt_ids,
        completion.token_ids,
        completion.log_probs,
        completion.drawn_log_probs,
        completion.finish_reason,
        completion.text or "",
        start,
    )

"""graftlm generate: prompts from a file, answers or labels to a file, all adapters in one pass."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from graftlm.cli._answers import (
    Key,
    Record,
    answered,
    answering,
    as_line,
    as_record,
    failure,
    read_answers,
    write_answers,
)
from graftlm.cli._sampling import (
    FrequencyPenalty,
    Grammar,
    JsonSchema,
    LogitBias,
    MaxNewTokens,
    MinP,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Stop,
    Temperature,
    TopK,
    TopP,
    check_constraint,
    parse_biases,
    read_constraint,
    read_schema,
    token_biases,
)
from graftlm.cli.console import console, errors
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.cli._prompts import Prompt
    from graftlm.data.instances import Message
    from graftlm.evaluation.labels import Predictor
    from graftlm.evaluation.speakers import Opened, Speaker
    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import Completion, Request, SamplingSettings

Finish = Callable[[Key, Record], None]  # called with the values of a record
Tell = Callable[[int], None]  # called after a step with the number of rows that got a token
LABELLED_AT_ONCE = 256  # prompts; their labels are in the file before the next ones are read
LABEL_TOKENS = 16384  # padded tokens that run together, where --batch-tokens says nothing
AHEAD = 4  # times --batch-rows answers are in the engine at most, so that it never walks through a whole file


def generate(
    file: Annotated[str, typer.Argument(help="Prompts: JSON, JSONL, CSV, Parquet, or text with one on each line.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of answers (JSONL) to write.")],
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", "-a", help="An adapter's or a run's folder. Repeatable.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base, if not the one that the adapters name.")] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Let the bare base answer too.")] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    stop: Stop = None,
    seed: Annotated[int, typer.Option(help="Fixes every draw, whatever else runs.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Answers to each prompt, a line each, numbered by 'sample'.")] = 1,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    beams: Annotated[int, typer.Option(help="Above 1: beam search, whose best --n beams are the answers.")] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="Beams are ranked by log-probability / length to this power.")
    ] = 1.0,
    log_probs: Annotated[
        bool, typer.Option("--log-probs", help="Write each answer's tokens with their log-probabilities.")
    ] = False,
    top_log_probs: Annotated[
        int, typer.Option(help="Write so many likeliest tokens at each place too; implies --log-probs.")
    ] = 0,
    prompt_log_probs: Annotated[
        bool, typer.Option("--prompt-log-probs", help="Write the prompt's tokens with their log-probabilities.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help='How a prompt is made of a row\'s columns: "Review: {text}".')
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message for rows that have none.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many rows of the file at most.")] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Answers written at the same time.")] = 32,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens in memory: rows × (longest prompt + longest answer). Default: what half of the free "
            f"memory holds; {LABEL_TOKENS:,} for labels.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the answers in the file, and add what is missing or had failed.")
    ] = False,
    chat_template: Annotated[str, typer.Option(help="For the base, and adapters that store none.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the base.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Answer every prompt of a file with every adapter, in one pass over one copy of the base.

    Adapters with a head give the likeliest label, or one for each word, with its probability.
    """
    from graftlm.cli._prompts import read_prompts
    from graftlm.evaluation.speakers import check_folders, open_adapters

    check_folders(adapter or [])
    if out.exists() and not resume:
        raise UserError(
            f"{out} exists already", hint="Add what is missing in it: --resume. Or choose another file: --out."
        )
    done = read_answers(out) if resume and out.exists() else {}
    biases = parse_biases(logit_bias)
    schema, rules = read_schema(json_schema), read_constraint(grammar, "--grammar")
    prompts, form = read_prompts(file, pattern=prompt, system=system, limit=limit)
    errors.print(f"{file}: {len(prompts):,} prompts, read as {form}", markup=False)

    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import SamplingSettings

    sampling = SamplingSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        n=n,
        num_beams=beams,
        length_penalty=length_penalty,
        top_log_probs=top_log_probs,
        prompt_log_probs=prompt_log_probs,
        json_schema=schema,
        regex=regex,
        grammar=rules,
    )
    with errors.status("loading base and adapters …"):
        opened = open_adapters(adapter or [], base, chat_template=chat_template, dtype=dtype, device=device)
    for note in opened.notes:
        errors.print(f"[yellow]note:[/] {escape(note)}")
    sampling = replace(sampling, logit_bias=token_biases(biases, opened.model))
    check_constraint(sampling, opened.model)
    speakers = opened.adapters if opened.adapters and not with_base else opened.speakers
    _check_speakers(opened, speakers)
    work = _plan(opened, speakers, prompts, sampling, done, file)
    kept = len(work.records) - len(work.asked) - len(work.failed)
    if not work.asked and not kept:
        raise _nothing(file, work)
    others = {key: record for key, record in done.items() if key not in work.records}
    work = replace(work, records=_in_order({**work.records, **others}))
    try:
        write_answers(out, [record for key, record in work.records.items() if key in done and answered(record)])
        with _answers_to(out, work) as (finish, tell):
            if work.labelled:
                _predict(opened, work, batch_tokens or LABEL_TOKENS, finish)
            if work.requests:
                engine = Engine(opened.model, opened.tokenizer, max_batch_rows=batch_rows, cache_tokens=batch_tokens)

                def write(key: Key, completion: Completion) -> None:
                    told = as_record(
                        completion, work.requests[key], opened.model, log_probs=log_probs or top_log_probs > 0
                    )
                    finish(key._replace(sample=completion.index + 1), told)

                _write(engine, work, write, finish, tell)
    except KeyboardInterrupt:
        errors.print(f"\nstopped; what is done is in {out}. To go on: the same command with --resume", markup=False)
        raise typer.Exit(130) from None
    write_answers(out, list(work.records.values()))
    if not kept and not any(answered(record) for record in work.records.values()):
        raise _nothing(file, work)
    _print_end(out, work, kept)


def _nothing(file: str, work: _Work) -> UserError:
    first = work.failed[0]
    return UserError(f"{file}: none of its prompts can be answered; row {first['row']}: {first['error']}")


@dataclass(frozen=True)
class _Work:
    """A record for each prompt and speaker, in the file's order, and what is asked for those without an answer."""

    records: dict[Key, Record]
    requests: dict[Key, Request]  # by the key of the first sample
    labelled: dict[Key, tuple[Predictor, Sequence[Message]]]
    asked: list[Key]  # the records that are to be filled in

    @property
    def failed(self) -> list[Record]:
        """The records of prompts that cannot be answered."""
        return [record for record in self.records.values() if "error" in record]


def _check_speakers(opened: Opened, speakers: Sequence[Speaker]) -> None:
    """See that each has something to say.

    Raises:
        UserError: it would have to write text, and the base is an encoder.
    """
    model = opened.model
    for speaker in speakers:
        if model.kind != "encoder" or speaker.head is not None:
            continue
        raise UserError(
            f"'{speaker.label}' has nothing to answer with: {model.name} is an encoder, which writes no text",
            hint="Name adapters that predict labels: --adapter FOLDER, without --with-base.",
        )


def _plan(
    opened: Opened,
    speakers: Sequence[Speaker],
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    done: dict[Key, Record],
    file: str,
) -> _Work:
    from graftlm.adapters.routing import mix_seed
    from graftlm.evaluation.labels import Predictor

    predictors = {
        speaker.name: Predictor.of(opened.model, opened.tokenizer, speaker.stack, speaker.head, speaker.template)
        for speaker in speakers
        if speaker.head is not None
    }
    work = _Work({}, {}, {}, [])
    several = any(prompt.part > 1 for prompt in prompts)
    for prompt in prompts:
        # Every adapter gets the same random numbers for a row, so that their answers are compared fairly.
        own = replace(sampling, seed=mix_seed(sampling.seed or 0, prompt.row, prompt.part))
        for speaker in speakers:
            first = Key(prompt.row, prompt.part, speaker.name)
            samples = 1 if speaker.name in predictors else sampling.n
            missing = []
            for key in [first._replace(sample=number) for number in range(1, samples + 1)]:
                record: Record = {"row": prompt.row, **({"part": prompt.part} if several else {})}
                record |= {"sample": key.sample} if samples > 1 else {}
                record |= {"prompt": prompt.shown, "adapter": speaker.name}
                before = done.get(key, {})
                if answered(before) and before.get("prompt") != record["prompt"]:
                    raise UserError(
                        f"row {prompt.row} of {file} is not the prompt that was answered in the file to resume",
                        hint="Resume with the file of prompts that it was begun with, or choose another --out.",
                    )
                work.records[key] = record | before if answered(before) else record
                missing += [key] * (not answered(before))
            if not missing:
                continue
            asked: Request | str | None = prompt.problem
            if asked is None and speaker.name not in predictors:
                asked = _request(opened, speaker, prompt, own, first)
            if isinstance(asked, str):
                for key in missing:
                    work.records[key] |= failure(asked)
                continue
            if asked is None:
                work.labelled[first] = predictors[speaker.name], prompt.messages
            else:
                work.requests[first] = asked
            work.asked.extend(missing)
    return work


def _request(opened: Opened, speaker: Speaker, prompt: Prompt, sampling: SamplingSettings, key: Key) -> Request | str:
    """What the engine is asked for, or why it cannot be."""
    try:
        request = speaker.request(prompt.messages, opened.tokenizer, sampling, str(key))
    except UserError as error:
        return error.message
    length, room = opened.model.count_words(request.prompt_ids), opened.model.room(speaker.stack)
    if speaker.reads_source:  # beside a source, prefix and answer have a context of their own
        room = opened.model.context_length - opened.model.virtual_length(speaker.stack)
    if length > room or (length == room and not speaker.reads_source):
        return f"the prompt has {length:,} tokens, and the context of the model is {room:,}"
    return request


def _in_order(records: dict[Key, Record]) -> dict[Key, Record]:
    """By row; the answers to one row stay in the order that they came in."""
    return dict(sorted(records.items(), key=lambda item: item[0][:2]))


@contextmanager
def _answers_to(out: Path, work: _Work) -> Iterator[tuple[Finish, Tell]]:
    """Inside, each record is appended to the file as it is filled in; one that has its answer stays as it is."""
    from graftlm.base.files import disk_errors

    with disk_errors(out), out.open("a", encoding="utf-8") as file, answering(len(work.asked)) as advance:

        def finish(key: Key, values: Record) -> None:
            if answered(work.records[key]):
                return
            advance(0, 1)
            work.records[key].update(values)
            file.write(as_line(work.records[key]))
            file.flush()

        yield finish, lambda rows: advance(rows, 0)


def _write(engine: Engine, work: _Work, write: Callable[[Key, Completion], None], finish: Finish, tell: Tell) -> None:
    """Run the requests; all answers in shared batches, the longest prompts first: none is left over at the end."""
    missing: dict[Key, list[Key]] = {}
    for key in work.asked:
        missing.setdefault(key._replace(sample=1), []).append(key)
    keys = {request.id: key for key, request in work.requests.items()}
    waiting = deque(sorted(work.requests, key=lambda key: -len(work.requests[key].prompt_ids)))
    inside = 0
    while waiting or engine.busy:
        while waiting and inside < AHEAD * engine.max_batch_rows:
            key = waiting.popleft()
            try:
                engine.submit(work.requests[key])
            except UserError as error:
                for sample in missing[key]:
                    finish(sample, failure(error.message))
            else:
                inside += work.requests[key].sampling.n
        events = engine.step()
        for event in events:
            if event.completion is not None:
                inside -= 1
                write(keys[event.request_id], event.completion)
        tell(sum(event.token_id is not None for event in events))


def _predict(opened: Opened, work: _Work, batch_tokens: int, finish: Finish) -> None:
    """Predict labels; those of all adapters in shared batches."""
    from graftlm.evaluation.labels import predict_labels

    keys = list(work.labelled)
    for start in range(0, len(keys), LABELLED_AT_ONCE):
        part = keys[start : start + LABELLED_AT_ONCE]
        found = predict_labels(opened.model, [work.labelled[key] for key in part], batch_tokens)
        for key, labels in zip(part, found, strict=True):
            if isinstance(labels, str):
                finish(key, failure(labels))
                continue
            shares = [round(share, 6) for share in labels.probabilities]
            single = work.labelled[key][0].head.type != "tagger"
            told = {"probability": shares[0]} if single else {"probabilities": shares}
            finish(key, {"answer": " ".join(labels.labels), "finish_reason": "cut" if labels.cut else "label", **told})


def _print_end(out: Path, work: _Work, kept: int) -> None:
    reasons = Counter(work.records[key]["finish_reason"] for key in work.asked)
    failed, new = work.failed, len(work.asked) - reasons.pop("error", 0)
    words = {
        "stop": "ended by themselves",
        "length": "cut at --max-new-tokens",
        "context": "cut at the context's end",
        "label": "labels",
        "cut": "labels of prompts that are longer than the context and were read to its end",
    }
    parts = [f"{number:,} {words.get(reason, reason)}" for reason, number in sorted(reasons.items(), reverse=True)]
    before = f", {kept:,} were there" if kept else ""
    listed = f" ({', '.join(parts)})" if parts else ""
    errors.print(f"{new:,} answers{listed}{before}", markup=False)
    told = list(dict.fromkeys(f"to row {record['row']}: {record['error']}" for record in failed))  # samples fail alike
    for line in told[:5]:
        errors.print(f"[yellow]no answer[/] {escape(line)}")
    if len(told) > 5:
        errors.print(f'[yellow]no answer[/] to {len(told) - 5:,} more; see "error" in the file')
    console.print(str(out), markup=False, soft_wrap=True)

"""graftlm generate: prompts from a file, answers or labels to a file, all adapters in one pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from graftlm.cli._sampling import MaxNewTokens, MinP, RepetitionPenalty, Stop, Temperature, TopK, TopP
from graftlm.cli.console import as_duration, console, errors
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.cli._open import Opened, Speaker
    from graftlm.cli._prompts import Prompt
    from graftlm.data.instances import Message
    from graftlm.evaluation.labels import Predictor
    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import Request, SamplingSettings

Key = tuple[int, int, str | None]  # row, part of the row, adapter
Record = dict[str, Any]
Finish = Callable[[Key | None, Record], None]  # called with the values of a record, or with None for a token
LABELLED_AT_ONCE = 256  # prompts; their labels are in the file before the next ones are read


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
    stop: Stop = None,
    seed: Annotated[int, typer.Option(help="Fixes every draw, whatever else runs.")] = 0,
    prompt: Annotated[
        str | None, typer.Option(help='How a prompt is made of a row\'s columns: "Review: {text}".')
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message for rows that have none.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many rows of the file at most.")] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Answers written at the same time.")] = 32,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens in memory: rows × (longest prompt + longest answer).")
    ] = 16384,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the answers in the file, and add what is missing.")
    ] = False,
    chat_template: Annotated[str, typer.Option(help="For the base, and adapters that store none.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the base.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Answer every prompt of a file with every adapter, in one pass over one copy of the base.

    Adapters with a head give the likeliest label, or one for each word, with its probability.
    """
    from graftlm.cli._open import check_folders, open_adapters
    from graftlm.cli._prompts import read_prompts

    check_folders(adapter or [])
    if out.exists() and not resume:
        raise UserError(
            f"{out} exists already", hint="Add what is missing in it: --resume. Or choose another file: --out."
        )
    done = _read_answers(out) if resume and out.exists() else {}
    prompts, form = read_prompts(file, pattern=prompt, system=system, limit=limit)
    errors.print(f"{file}: {len(prompts):,} prompts, read as {form}", markup=False)

    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import SamplingSettings

    sampling = SamplingSettings(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop or ()), seed=seed
    )
    with errors.status("loading base and adapters …"):
        opened = open_adapters(adapter or [], base, chat_template=chat_template, dtype=dtype, device=device)
    for note in opened.notes:
        errors.print(f"[yellow]note:[/] {escape(note)}")
    speakers = opened.adapters if opened.adapters and not with_base else opened.speakers
    _check_speakers(opened, speakers)
    work = _plan(opened, speakers, prompts, sampling, done, file)
    failed = work.failed
    kept = len(work.records) - len(work.asked) - len(failed)
    if failed and not work.asked and not kept:
        raise UserError(f"{file}: none of its prompts can be answered; row {failed[0]['row']}: {failed[0]['error']}")
    others = {key: record for key, record in done.items() if key not in work.records}
    work = replace(work, records=_in_order({**work.records, **others}))
    try:
        _write_in_order(out, [record for key, record in work.records.items() if key in done])
        with _answers_to(out, work) as finish:
            if work.labelled:
                _predict(opened, work, batch_tokens, finish)
            if work.requests:
                engine = Engine(opened.model, opened.tokenizer, max_batch_rows=batch_rows, cache_tokens=batch_tokens)
                _write(engine, work.requests, finish)
    except KeyboardInterrupt:
        errors.print(f"\nstopped; what is done is in {out}. To go on: the same command with --resume", markup=False)
        raise typer.Exit(130) from None
    _write_in_order(out, list(work.records.values()))
    _print_end(out, work, kept)


@dataclass(frozen=True)
class _Work:
    """A record for each prompt and speaker, in the file's order, and what is asked for those without an answer."""

    records: dict[Key, Record]
    requests: dict[Key, Request]
    labelled: dict[Key, tuple[Predictor, Sequence[Message]]]

    @property
    def asked(self) -> list[Key]:
        """The records that are to be filled in."""
        return [*self.labelled, *self.requests]

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
    records: dict[Key, Record] = {}
    requests: dict[Key, Request] = {}
    labelled: dict[Key, tuple[Predictor, Sequence[Message]]] = {}
    several = any(prompt.part > 1 for prompt in prompts)
    for prompt in prompts:
        # Every adapter gets the same random numbers for a row, so that their answers are compared fairly.
        own = replace(sampling, seed=mix_seed(sampling.seed or 0, prompt.row, prompt.part))
        for speaker in speakers:
            key = (prompt.row, prompt.part, speaker.name)
            record: Record = {"row": prompt.row, **({"part": prompt.part} if several else {})}
            record |= {"prompt": prompt.shown, "adapter": speaker.name}
            records[key] = record
            if key in done and done[key].get("answer") is not None:
                if done[key].get("prompt") != record["prompt"]:
                    raise UserError(
                        f"row {prompt.row} of {file} is not the prompt that was answered in the file to resume",
                        hint="Resume with the file of prompts that it was begun with, or choose another --out.",
                    )
                records[key] = done[key]
                continue
            problem = prompt.problem
            if problem is None and speaker.name in predictors:
                labelled[key] = predictors[speaker.name], prompt.messages
                continue
            if problem is None:
                try:
                    request = speaker.request(prompt.messages, opened.tokenizer, own, f"{key}")
                except UserError as error:
                    problem = error.message
                else:
                    length, room = opened.model.count_words(request.prompt_ids), opened.model.room(speaker.stack)
                    if length < room:
                        requests[key] = request
                        continue
                    problem = f"the prompt has {length:,} tokens, and the context of the model is {room:,}"
            record |= {"answer": None, "finish_reason": "error", "error": problem}
    return _Work(records, requests, labelled)


def _in_order(records: dict[Key, Record]) -> dict[Key, Record]:
    """By row; the answers to one row stay in the order that they came in."""
    return dict(sorted(records.items(), key=lambda item: item[0][:2]))


@contextmanager
def _answers_to(out: Path, work: _Work) -> Iterator[Finish]:
    """Inside, each record is appended to the file as it is filled in."""
    from graftlm.base.files import disk_errors

    with disk_errors(out), out.open("a", encoding="utf-8") as file, _progress(len(work.asked)) as advance:

        def finish(key: Key | None, values: Record) -> None:
            advance(key is None, key is not None)
            if key is not None:
                work.records[key].update(values)
                file.write(_line(work.records[key]))
                file.flush()

        yield finish


def _write(engine: Engine, requests: dict[Key, Request], finish: Finish) -> None:
    """Run the requests; all answers in shared batches."""
    keys = {request.id: key for key, request in requests.items()}
    with closing(engine.stream(requests.values())) as events:
        for event in events:
            finish(None, {})
            completion = event.completion
            if completion is not None:
                answer = {"answer": (completion.text or "").strip(), "finish_reason": completion.finish_reason}
                finish(keys[completion.request_id], {**answer, "tokens": len(completion.token_ids)})


def _predict(opened: Opened, work: _Work, batch_tokens: int, finish: Finish) -> None:
    """Predict labels; those of all adapters in shared batches."""
    from graftlm.evaluation.labels import predict_labels

    keys = list(work.labelled)
    for start in range(0, len(keys), LABELLED_AT_ONCE):
        part = keys[start : start + LABELLED_AT_ONCE]
        found = predict_labels(opened.model, [work.labelled[key] for key in part], batch_tokens)
        for key, labels in zip(part, found, strict=True):
            if isinstance(labels, str):
                finish(key, {"answer": None, "finish_reason": "error", "error": labels})
                continue
            shares = [round(share, 6) for share in labels.probabilities]
            single = work.labelled[key][0].head.type != "tagger"
            told = {"probability": shares[0]} if single else {"probabilities": shares}
            finish(key, {"answer": " ".join(labels.labels), "finish_reason": "cut" if labels.cut else "label", **told})


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Answers done, tokens a second, time left: on stderr, live in a terminal and silent elsewhere."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    started, tokens, answers = time.monotonic(), 0, 0
    columns = [TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")]
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, pace="")

        def advance(new_tokens: int, finished: bool) -> None:
            nonlocal tokens, answers
            tokens, answers = tokens + new_tokens, answers + finished
            seconds = time.monotonic() - started
            left = f"{as_duration(seconds * (total - answers) / answers)} left" if answers else ""
            speed = f"{tokens / max(seconds, 1e-9):,.0f} tokens/s" if tokens else ""
            bar.update(task, completed=answers, pace=" · ".join(filter(None, (speed, left))))

        yield advance


def _read_answers(path: Path) -> dict[Key, Record]:
    """The records of a file to resume; a last line that was cut short is left out.

    Raises:
        UserError: the file is something else.
    """
    records: dict[Key, Record] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            key = (int(record["row"]), int(record.get("part", 1)), record["adapter"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{path}, line {number} is no answer that graftlm wrote; the file cannot be resumed",
                hint="Choose another file with --out.",
            ) from error
        records[key] = record
    return records


def _write_in_order(out: Path, records: Sequence[Record]) -> None:
    """Replace the file, whole or not at all."""
    from graftlm.base.files import write_text

    write_text(out, "".join(_line(record) for record in records))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _print_end(out: Path, work: _Work, kept: int) -> None:
    reasons = Counter(work.records[key]["finish_reason"] for key in work.asked)
    failed, answered = work.failed, len(work.asked) - reasons.pop("error", 0)
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
    errors.print(f"{answered:,} answers{listed}{before}", markup=False)
    for record in failed[:5]:
        errors.print(f"[yellow]no answer[/] to row {record['row']}: {escape(record['error'])}")
    if len(failed) > 5:
        errors.print(f'[yellow]no answer[/] to {len(failed) - 5:,} more; see "error" in the file')
    console.print(str(out), markup=False, soft_wrap=True)

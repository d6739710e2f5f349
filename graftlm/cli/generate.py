"""graftlm generate: prompts from a file, answers to a file, all adapters in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
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
    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import Request, SamplingSettings

Key = tuple[int, int, str | None]  # row, part of the row, adapter


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
    """Answer every prompt of a file with every adapter, in one pass over one copy of the base."""
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
    records, requests = _plan(opened, speakers, prompts, sampling, done, file)
    engine = Engine(opened.model, opened.tokenizer, max_batch_rows=batch_rows, max_batch_tokens=batch_tokens)
    failed = [record for record in records.values() if "error" in record]
    kept = len(records) - len(requests) - len(failed)
    if failed and not requests and not kept:
        raise UserError(f"{file}: none of its prompts can be answered; row {failed[0]['row']}: {failed[0]['error']}")
    records = _in_order({**records, **{key: record for key, record in done.items() if key not in records}})
    try:
        _answer(engine, requests, records, out, [record for key, record in records.items() if key in done])
    except KeyboardInterrupt:
        errors.print(f"\nstopped; what is done is in {out}. To go on: the same command with --resume", markup=False)
        raise typer.Exit(130) from None
    _write_in_order(out, list(records.values()))
    _print_end(out, requests, records, failed, kept)


def _plan(
    opened: Opened,
    speakers: Sequence[Speaker],
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    done: dict[Key, dict[str, Any]],
    file: str,
) -> tuple[dict[Key, dict[str, Any]], dict[Key, Request]]:
    """A record for each prompt and speaker, in the file's order, and the requests for those without an answer."""
    from graftlm.adapters.routing import mix_seed

    records: dict[Key, dict[str, Any]] = {}
    requests: dict[Key, Request] = {}
    several = any(prompt.part > 1 for prompt in prompts)
    for prompt in prompts:
        # Every adapter gets the same random numbers for a row, so that their answers are compared fairly.
        own = replace(sampling, seed=mix_seed(sampling.seed or 0, prompt.row, prompt.part))
        for speaker in speakers:
            key = (prompt.row, prompt.part, speaker.name)
            record: dict[str, Any] = {"row": prompt.row, **({"part": prompt.part} if several else {})}
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
    return records, requests


def _in_order(records: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """By row; the answers to one row stay in the order that they came in."""
    return dict(sorted(records.items(), key=lambda item: item[0][:2]))


def _answer(
    engine: Engine,
    requests: dict[Key, Request],
    records: dict[Key, dict[str, Any]],
    out: Path,
    kept: Sequence[dict[str, Any]],
) -> None:
    """Run the requests and append each answer to the file as it is finished."""
    from graftlm.base.files import disk_errors

    keys = {request.id: key for key, request in requests.items()}
    _write_in_order(out, kept)  # drops a line that an earlier run left unfinished
    with (
        disk_errors(out),
        out.open("a", encoding="utf-8") as file,
        _progress(len(requests)) as advance,
        closing(engine.stream(requests.values())) as events,
    ):
        for event in events:
            completion = event.completion
            advance(1, completion is not None)
            if completion is None:
                continue
            record = records[keys[completion.request_id]]
            record["answer"] = (completion.text or "").strip()
            record |= {"finish_reason": completion.finish_reason, "tokens": len(completion.token_ids)}
            file.write(_line(record))
            file.flush()


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
            left = f" · {as_duration(seconds * (total - answers) / answers)} left" if answers else ""
            bar.update(task, completed=answers, pace=f"{tokens / max(seconds, 1e-9):,.0f} tokens/s{left}")

        yield advance


def _read_answers(path: Path) -> dict[Key, dict[str, Any]]:
    """The records of a file to resume; a last line that was cut short is left out.

    Raises:
        UserError: the file is something else.
    """
    records: dict[Key, dict[str, Any]] = {}
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


def _write_in_order(out: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the file, whole or not at all."""
    from graftlm.base.files import write_text

    write_text(out, "".join(_line(record) for record in records))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _print_end(
    out: Path,
    requests: dict[Key, Request],
    records: dict[Key, dict[str, Any]],
    failed: Sequence[dict[str, Any]],
    kept: int,
) -> None:
    reasons: dict[str, int] = {}
    for key in requests:
        reason = records[key]["finish_reason"]
        reasons[reason] = reasons.get(reason, 0) + 1
    words = {"stop": "ended by themselves", "length": "cut at --max-new-tokens", "context": "cut at the context's end"}
    parts = [f"{number:,} {words.get(reason, reason)}" for reason, number in sorted(reasons.items(), reverse=True)]
    before = f", {kept:,} were there" if kept else ""
    listed = f" ({', '.join(parts)})" if parts else ""
    errors.print(f"{len(requests):,} answers{listed}{before}", markup=False)
    for record in failed[:5]:
        errors.print(f"[yellow]no answer[/] to row {record['row']}: {escape(record['error'])}")
    if len(failed) > 5:
        errors.print(f'[yellow]no answer[/] to {len(failed) - 5:,} more; see "error" in the file')
    console.print(str(out), markup=False, soft_wrap=True)

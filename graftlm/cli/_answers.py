"""Answers to a file: the records, how one is made of what the engine gives, reading them again, and progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graftlm.cli.console import as_duration, errors
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.adapters.model import AdaptedModel
    from graftlm.generation.requests import Completion, Request

Record = dict[str, Any]


class Key(NamedTuple):
    """Which answer: to which part of which row, by whom (None: the base), and which of its samples; from 1."""

    row: int
    part: int
    adapter: str | None
    sample: int = 1


def failure(error: str) -> Record:
    """What a record has in the place of an answer. Resuming tries it again."""
    return {"answer": None, "finish_reason": "error", "error": error}


def answered(record: Record) -> bool:
    return record.get("answer") is not None


def as_record(completion: Completion, request: Request, model: AdaptedModel, *, log_probs: bool) -> Record:
    """What a record has of an answer: its text, how it ended, and log-probabilities as far as they are asked for."""
    if completion.error is not None:
        return failure(completion.error)
    found: Record = {
        "answer": (completion.text or "").strip(),
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.token_ids),
    }
    if log_probs:
        found["log_probs"] = _scored(completion.token_ids, completion.log_probs, model)
        for entry, top in zip(found["log_probs"], completion.top_log_probs, strict=False):
            entry["top"] = _scored([token for token, _ in top], [log_prob for _, log_prob in top], model)
    if completion.prompt_log_probs is not None:
        found["prompt_log_probs"] = _scored(request.prompt_ids, completion.prompt_log_probs, model)
    return found


def _scored(ids: Sequence[int], log_probs: Sequence[float | None], model: AdaptedModel) -> list[Record]:
    return [
        {"id": one, "token": _text(one, model), "log_prob": None if log_prob is None else round(log_prob, 6)}
        for one, log_prob in zip(ids, log_probs, strict=True)
    ]


def _text(token: int, model: AdaptedModel) -> str | None:
    """A token alone as text; None for a virtual one."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    return None if model.is_virtual(token) else str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def read_answers(path: Path) -> dict[Key, Record]:
    """The records of a file to resume; a last line that was cut short is left out.

    Raises:
        UserError: the file is something else.
    """
    records: dict[Key, Record] = {}
    # Not splitlines: an answer may hold other characters that it takes for ends of lines.
    lines = list(StringIO(path.read_text(encoding="utf-8", errors="replace"), newline="\n"))
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            part, sample = int(record.get("part", 1)), int(record.get("sample", 1))
            key = Key(int(record["row"]), part, record["adapter"], sample)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{path}, line {number} is no answer that graftlm wrote; the file cannot be resumed",
                hint="Choose another file with --out.",
            ) from error
        records[key] = record
    return records


def write_answers(out: Path, records: Sequence[Record]) -> None:
    """Replace the file, whole or not at all."""
    from graftlm.base.files import write_text

    write_text(out, "".join(as_line(record) for record in records))


def as_line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def answering(total: int) -> Iterator[Callable[[int, int], None]]:
    """Answers done, tokens a second, rows running, time left: on stderr, live in a terminal and silent elsewhere."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    started, tokens, answers, running = time.monotonic(), 0, 0, 0
    columns = [TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")]
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, pace="")

        def advance(new_tokens: int, finished: int) -> None:
            nonlocal tokens, answers, running
            tokens, answers, running = tokens + new_tokens, answers + finished, new_tokens or running
            seconds = time.monotonic() - started
            left = f"{as_duration(seconds * (total - answers) / answers)} left" if answers else ""
            speed = f"{tokens / max(seconds, 1e-9):,.0f} tokens/s" if tokens else ""
            rows = f"{running} running" if running else ""
            bar.update(task, completed=answers, pace=" · ".join(filter(None, (speed, rows, left))))

        yield advance

"""From query logs to training prompts: consent, personal data, duplicates, limits, language, use case, splits.

Rows are streamed; what is kept stands in a file, so that memory does not grow with the log. Every row that is read
is kept or counted by the reason for which it was not.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b, file_digest
from itertools import chain
from pathlib import Path
from typing import Any

from graftlm.data.collecting.demonstrations import check_place, write_sheet
from graftlm.data.collecting.duplicates import Kept, Prompt, band_rows
from graftlm.data.collecting.folder import REPORT, SPLITS, TABLE, check_free, prompt_id
from graftlm.data.collecting.language import detect
from graftlm.data.collecting.logs import Columns, consent_problem, find_logs, read_log, user_of, with_columns
from graftlm.data.collecting.personal import remove
from graftlm.data.collecting.use_cases import use_case
from graftlm.data.parallel import in_chunks, processes_here
from graftlm.data.readers import Row
from graftlm.errors import UserError

CHUNK = 200  # rows that a process is given at once
EXAMPLES = 5  # places kept for each reason
_PLACEHOLDERS = re.compile(r"<[A-Z]+>")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """How a log is collected. ``prompt``, ``user`` and ``consent`` name columns, None finds them by their usual names;
    ``consent_values`` are marks that mean yes; ``table`` is that of an SQLite log. ``shares``: of train, valid and test
    in users; ``per_user``: most prompts of a user; ``prefix`` and ``similarity``: see ``duplicates.Kept``. ``salt``
    is what names of users are hashed with: None draws one that is forgotten at the end."""

    prompt: str | None = None
    user: str | None = None
    consent: str | None = None
    consent_values: tuple[str, ...] = ()
    table: str | None = None
    seed: int = 0
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    per_user: int = 200
    prefix: int = 100
    similarity: float = 0.8
    salt: bytes | None = None

    def __post_init__(self) -> None:
        if any(share < 0 for share in self.shares) or not 0.999 < sum(self.shares) < 1.001:
            raise UserError(f"shares of the splits: {self.shares}", hint="Three shares that add up to 1: 0.9,0.05,0.05")
        if not 0.3 <= self.similarity <= 1:
            raise UserError(f"similarity: {self.similarity} is not between 0.3 and 1")
        if self.per_user < 1 or self.prefix < 0:
            raise UserError("prompts per user: at least 1; letters of a beginning: at least 0")


@dataclass
class Report:
    """An account of a collection: ``read`` = ``kept`` + all ``dropped``; ``personal`` counts what was removed by kind,
    ``personal_prompts`` the rows it was in, and ``examples`` gives places ("file:row") of each reason to drop."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    personal: Counter[str] = field(default_factory=Counter)
    personal_prompts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    use_cases: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    corrected: int = 0
    corrections_unused: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, source: Path, row: int) -> None:
        self.dropped[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(f"{source.name}:{row}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def split_of(user: str, seed: int, shares: Sequence[float]) -> str:
    """The split of all prompts of a user: by a hash of user and seed alone, so rows, order and salt change nothing."""
    digest = blake2b(f"{seed}\n{user}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return SPLITS[0] if place < shares[0] else SPLITS[1] if place < shares[0] + shares[1] else SPLITS[2]


def user_name(user: str, salt: bytes) -> str:
    """The name that stands for a user: nobody without the salt can tell whose it is, or try ids until one fits."""
    return blake2b(user.encode("utf-8", "surrogatepass"), key=salt, digest_size=8).hexdigest()


def collect(
    logs: Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    corrections: Mapping[str, str] | None = None,
    demonstrations: str | Path | None = None,
    most_demonstrations: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Report:
    """Collect prompts of query logs into the folder ``out``: the splits as JSONL, use_cases.csv and report.json.

    ``corrections`` are use cases by prompt id that win over the rules; ``demonstrations`` is a file to write for people
    to fill in, with at most ``most_demonstrations`` prompts; ``overwrite`` replaces an earlier collection; ``progress``
    is told how many rows have been read. ``processes`` look at rows at the same time (None: one for each core); the
    result does not depend on it.

    Raises:
        UserError: a log cannot be read, or lacks a column of prompts, users or consent; no prompt is left, with the
            reasons (nothing is written then); or files in ``out`` would be replaced.
    """
    settings = settings or Settings()
    if demonstrations is not None:
        check_place(Path(demonstrations))
    salt = settings.salt or secrets.token_bytes(32)
    workers = processes_here() if processes is None else processes
    _ = detect("Which language is this?"), use_case("")  # read their models now: processes that are forked share them
    folder = Path(out)
    if not overwrite:
        check_free(folder)
    report = Report(settings={**asdict(settings), "salt": "given" if settings.salt else "drawn and forgotten"})
    with _working_place(folder) as work:
        store = Kept(Path(work) / "kept.sqlite", prefix=settings.prefix, threshold=settings.similarity)
        with closing(store):
            for path in find_logs(logs):
                before = report.read
                columns, rows = with_columns(
                    read_log(path, table=settings.table), path, settings.prompt, settings.user, settings.consent
                )
                look = partial(_look, columns=columns, settings=settings)
                for looked in chain.from_iterable(in_chunks(look, rows, chunk=CHUNK, processes=workers)):
                    report.read += 1
                    reason = _take(looked, path, settings, salt, store, report)
                    if reason is not None:
                        report.drop(reason, path, looked.number)
                    if progress is not None:
                        progress(report.read)
                report.sources.append(_source(path, report.read - before, columns))
            if not report.kept:
                raise _nothing_left(folder, report)
            _write(Path(work), store, report, corrections or {})
        for name in (*(f"{split}.jsonl" for split in SPLITS), TABLE):
            os.replace(Path(work) / name, folder / name)
    if demonstrations is not None:
        write_sheet(folder, Path(demonstrations), most_demonstrations)
    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=2) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")
    return report


@contextmanager
def _working_place(folder: Path) -> Iterator[str]:
    """A folder for what is not whole, in ``folder``; that is removed too if it was made and nothing came into it."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".collect-") as work:
            yield work
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _nothing_left(folder: Path, report: Report) -> UserError:
    reasons = [
        f"  {number:,} × {reason}, for example {', '.join(report.examples[reason][:3])}"
        for reason, number in report.dropped.most_common()
    ]
    what = f"{folder}: no prompt is left of {report.read:,} row{'s' * (report.read != 1)}, and nothing is written"
    consent = any("consent" in reason for reason in report.dropped)
    return UserError(
        "\n".join([what + ":" * bool(reasons), *reasons]),
        hint="--consent-value names the mark that means yes." if consent else None,
    )


def _source(path: Path, rows: int, columns: Columns) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "rows": rows, "columns": asdict(columns)}


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a row shows by itself: why it is of no use, or its prompt; ``removed`` counts personal data by kind."""

    number: int
    reason: str | None
    removed: Counter[str]
    user: str = ""
    text: str = ""
    prompt: Prompt | None = None
    use_case: tuple[str, str] = ("", "")
    language: str = ""


def _look(rows: Sequence[tuple[int, Row]], columns: Columns, settings: Settings) -> list[_Looked]:
    """All that can be said of rows without the others: most of the work, and any process may do it."""
    accepted = frozenset(value.strip().lower() for value in settings.consent_values)
    return [_look_at(row, number, columns, settings, accepted) for number, row in rows]


def _look_at(row: Row, number: int, columns: Columns, settings: Settings, accepted: frozenset[str]) -> _Looked:
    user = user_of(row.get(columns.user))
    if user is None:
        return _Looked(number, "no user id", Counter())
    problem = consent_problem(row.get(columns.consent), accepted)
    if problem is not None:
        return _Looked(number, problem, Counter())
    text = row.get(columns.prompt)
    if not isinstance(text, str):
        return _Looked(number, "prompt is not text", Counter())
    if not text.strip():
        return _Looked(number, "empty prompt", Counter())
    clean, removed = remove(text.strip())
    if not re.search(r"\w", _PLACEHOLDERS.sub("", clean)):
        return _Looked(number, "nothing but personal data or signs", removed)
    prompt = Prompt(clean, settings.prefix, band_rows(settings.similarity))
    return _Looked(number, None, removed, user, clean, prompt, use_case(clean), detect(clean))


def _take(looked: _Looked, path: Path, settings: Settings, salt: bytes, store: Kept, report: Report) -> str | None:
    """Keep a row, or say why not."""
    report.personal.update(looked.removed)
    report.personal_prompts.update(dict.fromkeys(looked.removed, 1))
    prompt = looked.prompt
    if prompt is None:
        return looked.reason
    duplicate = store.duplicate(prompt)
    if duplicate is not None:
        return duplicate
    name = user_name(looked.user, salt)
    if store.of_user(name) >= settings.per_user:
        return "over the limit of this user"
    case, rule = looked.use_case
    record = {
        "id": prompt_id(looked.text),
        "prompt": looked.text,
        "user": name,
        "language": looked.language,
        "use_case": case,
        "rule": rule,
        "removed": dict(looked.removed),
        "source": path.name,
        "row": looked.number,
    }
    split = split_of(looked.user, settings.seed, settings.shares)
    store.add(prompt, name, split, json.dumps(record, ensure_ascii=False))
    report.kept += 1
    return None


def _write(folder: Path, store: Kept, report: Report, corrections: Mapping[str, str]) -> None:
    """The splits and the table of use cases."""
    used = 0
    with ExitStack() as stack:
        files = {
            split: stack.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n"))
            for split in SPLITS
        }
        table = csv.writer(stack.enter_context((folder / TABLE).open("w", encoding="utf-8-sig", newline="")))
        table.writerow(["id", "prompt", "language", "use_case", "rule", "use_case_by_hand"])
        for split, text in store.records():
            record = json.loads(text)
            by_hand = corrections.get(record["id"], "")
            if by_hand:
                used += 1
                record |= {"use_case": by_hand, "rule": "by hand"}
            report.languages[record["language"]] += 1
            report.use_cases[record["use_case"]] += 1
            report.rules[record["rule"]] += 1
            files[split].write(json.dumps({**record, "split": split}, ensure_ascii=False) + "\n")
            named = [record[key] for key in ("id", "prompt", "language", "use_case", "rule")]
            table.writerow([*named, by_hand])
    report.corrected, report.corrections_unused = used, len(corrections) - used
    report.splits = {split: {"prompts": 0, "users": 0} for split in SPLITS} | store.splits()

"""Rows from any path: JSON, JSONL, CSV, TSV, Parquet, text, folders of these, sets, ``datasets`` folders, the Hub.

What a file holds is told from its content first (JSON lines in a ``.json`` file are read as lines).
Plain text is split into documents at blank lines. JSON lines, CSV, text and Parquet are streamed.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from graftlm.data.sets import default_split, is_set, read_set_rows
from graftlm.errors import UserError

Row = dict[str, Any]
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt", ".text", ".md")
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, *PARQUET_SUFFIXES, ".txt", ".text")
KINDS = "JSON, JSONL, CSV, TSV, Parquet or plain text (each also as .gz but Parquet)"
ROW_KEYS = ("data", "rows", "instances", "examples", "train")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_sources(path: str | Path) -> list[str]:
    """The files to read for a path: itself, or the data files of a folder, in order.

    A set, a ``datasets`` folder or a Hub name is one source.

    Raises:
        UserError: the path does not exist or the folder holds no data file.
    """
    place = Path(path).expanduser()
    if place.is_dir() and not is_set(place) and not _is_datasets_folder(place):
        files = sorted(
            f
            for f in place.rglob("*")
            if f.is_file() and _suffix(f) in SUFFIXES and not any(p.startswith(".") for p in f.parts[-3:])
        )
        if not files:
            raise UserError(f"{path}: this folder holds no data file", hint=f"Expected {KINDS}.")
        return [str(f) for f in files]
    if not place.exists() and not _looks_like_hub_name(str(path)):
        raise _missing(place)
    return [str(place) if place.exists() else str(path)]


def read_rows(path: str | Path, *, split: str | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a path with their numbers, counted from 1 in each file.

    The number is the index in a JSON array, the line in JSON lines and in text (where a document begins),
    the data row in CSV, TSV, Parquet, sets and ``datasets``. ``split`` names a split of a data set.

    Raises:
        UserError: naming file, row and place: no such path, empty, broken, not UTF-8, of an unknown kind.
    """
    for source in find_sources(path):
        place = Path(source)
        if place.is_file():
            rows = _read_file(place)
        elif is_set(place):
            rows = enumerate(read_set_rows(place, split or default_split(place)), 1)
        elif place.is_dir():
            rows = _read_datasets_folder(place, split)
        else:
            rows = _read_hub(source, split)
        count = 0
        for row in rows:
            yield row
            count += 1
        if not count:
            raise UserError(f"{source}: the file holds no rows")


def _read_file(path: Path) -> Iterator[tuple[int, Row]]:
    suffix = _suffix(path)
    with _open(path) as file:
        try:
            head = file.read(65536)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from error
    if not head:
        raise UserError(f"{path}: the file is empty", hint=f"Expected {KINDS}.")
    if head[:4] == b"PAR1" or suffix in PARQUET_SUFFIXES:
        return _read_parquet(path)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: the file is UTF-16, not UTF-8 (byte 0)", hint="Save it as UTF-8.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and len(head) < 65536:
        raise UserError(f"{path}: the file is empty but for white space", hint=f"Expected {KINDS}.")
    if suffix in TEXT_SUFFIXES:
        return _read_text(path)
    if suffix in TABLE_SUFFIXES:
        return _read_table(path, "\t" if suffix == ".tsv" else None)
    if start[:1] == b"[":
        return _read_json(path)
    if start[:1] == b"{":
        return _read_json_lines(path) if _is_lines(start, len(head) < 65536) else _read_json(path)
    if suffix in JSON_SUFFIXES:
        shown = start[:20].decode("utf-8", "replace")
        _decode(start[:20], path, len(head) - len(start), cut=True)
        raise UserError(f"{path}: this is not JSON: it begins with {shown!r}, line 1, column 1")
    raise UserError(f"{path}: unknown kind of file", hint=f"Expected {KINDS}, named by its suffix.")


def _is_lines(start: bytes, whole: bool) -> bool:
    """Whether the content is one JSON object a line (and not one object over many lines, or one of rows)."""
    first, newline, rest = start.partition(b"\n")
    if not newline and not whole:
        return b'{"' in start[:64] and not any(f'{{"{k}": [{{'.encode() in start[:256] for k in ROW_KEYS)
    try:
        value = json.loads(first)
    except ValueError:
        # A broken first line of several objects is a broken line; an object over lines opens and breaks off.
        return rest.lstrip()[:1] == b"{" and first.rstrip().endswith(b"}")
    return bool(rest.strip()) or _rows_key(value) is None


def _rows_key(value: dict[str, Any]) -> str | None:
    """The key under which an object holds its rows."""
    for key in ROW_KEYS:
        rows = value.get(key)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "instruction" not in value:
            return key
    return None


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    """A JSON array, element by element, so that an error names its row; or an object that holds one."""
    with _open(path) as file:
        text = _decode(_read_all(file, path), path, 0).removeprefix("\ufeff")
    if text.lstrip()[:1] == "{":
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _broken_json(path, error, None) from error
        key = _rows_key(value)
        rows = value[key] if key else [value]
        yield from ((i, _as_row(row, path, i)) for i, row in enumerate(rows, 1))
        return
    decode = json.JSONDecoder().raw_decode
    space = re.compile(r"[ \t\r\n]*")

    def skip(place: int) -> int:
        match = space.match(text, place)
        return match.end() if match else place

    place, number = skip(skip(0) + 1), 0
    while text[place : place + 1] != "]" or number:
        number += 1
        try:
            value, place = decode(text, place)
        except json.JSONDecodeError as error:
            raise _broken_json(path, error, number) from error
        yield number, _as_row(value, path, number)
        place = skip(place)
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            what = "',' or ']' expected" if place < len(text) else "the file ends before ']'"
            raise _broken_json(path, json.JSONDecodeError(what, text, place), number)
        place = skip(place + 1)
    if text[place + 1 :].strip():
        after = json.JSONDecodeError("text after the end of the array", text, skip(place + 1))
        raise _broken_json(path, after, None)


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: row {number} is broken JSON: line {number}, column {error.colno}: {error.msg}",
                hint=_show(line, error.pos),
            ) from error
        yield number, _as_row(value, path, number)


def _read_table(path: Path, delimiter: str | None) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)
    if delimiter is None:
        header_line = next((line for _, line in _lines(path) if line.strip()), "")
        delimiter = max(",;\t", key=header_line.count)
    rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for values in rows:
            if not values:
                continue
            if header is None:
                header = [name.strip() for name in values]
                repeated = [name for name in header if header.count(name) > 1]
                if repeated:
                    raise UserError(f"{path}: the column name '{repeated[0]}' stands twice in the first line")
                continue
            number += 1
            if len(values) != len(header):
                raise UserError(
                    f"{path}: row {number} (line {rows.line_num}) has {len(values)} fields, but the first"
                    f" line names {len(header)}: {', '.join(header)}",
                    hint="Put quotation marks around a field that holds the separator.",
                )
            yield number, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1} (line {rows.line_num}) is broken: {error}") from error


def _read_text(path: Path) -> Iterator[tuple[int, Row]]:
    """Documents split at blank lines, each with the number of its first line."""
    begin, lines = 0, list[str]()
    for number, line in _lines(path):
        if line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield begin, {"text": "".join(lines).strip("\r\n")}
            lines = []
    if lines:
        yield begin, {"text": "".join(lines).strip("\r\n")}


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file, after row {number}: {error}") from error


def _is_datasets_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _read_datasets_folder(path: Path, split: str | None) -> Iterator[tuple[int, Row]]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever `datasets` meets in a broken folder
        raise UserError(f"{path}: not a readable `datasets` folder: {error}") from error
    return _dataset_rows(data, str(path), split)


def _read_hub(name: str, split: str | None) -> Iterator[tuple[int, Row]]:
    import datasets

    try:
        data = datasets.load_dataset(name)
    except Exception as error:  # no network, no such data set, a script in it: all of them end here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"'{name}' is no file or folder here, and could not be loaded as a data set of the Hub: {reason}",
            hint=_neighbours(Path(name)),
        ) from error
    return _dataset_rows(data, name, split)


def _dataset_rows(data: Any, name: str, split: str | None) -> Iterator[tuple[int, Row]]:
    """Rows of a ``datasets`` Dataset or DatasetDict; labels of a class become their names."""
    import datasets

    if isinstance(data, dict):
        names = list(data)
        chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if chosen not in names:
            what = f"has no split '{split}'" if split else "has several splits and none is 'train'"
            raise UserError(f"{name}: the data set {what}; there are: {', '.join(names)}")
        data = data[chosen]
    labels = {k: f for k, f in (data.features or {}).items() if isinstance(f, datasets.ClassLabel)}
    for number, row in enumerate(data, 1):
        named = {k: f.int2str(row[k]) for k, f in labels.items() if row[k] is not None and row[k] >= 0}
        yield number, {**row, **named}


def _open(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_all(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, decoded one by one so that an error gives its byte."""
    offset, number = 0, 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline()
            except (OSError, EOFError, zlib.error) as error:
                raise _unreadable(path, error) from error
            if not line:
                return
            number += 1
            text = _decode(line, path, offset, line=number)
            yield number, text.removeprefix("\ufeff") if number == 1 else text
            offset += len(line)


def _decode(data: bytes, path: Path, offset: int, *, line: int | None = None, cut: bool = False) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3:
            return data[: error.start].decode("utf-8")
        at = line if line is not None else data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not UTF-8: byte {offset + error.start} (line {at}) is 0x{data[error.start]:02x}",
            hint="Save the file as UTF-8, for example: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from error


def _as_row(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: row {number} is a {_json_name(value)}, not an object with named fields",
            hint='Each row must be an object such as {"prompt": "…", "completion": "…"}.',
        )
    return value


def _json_name(value: Any) -> str:
    names = {str: "text", list: "list", int: "number", float: "number", bool: "truth value"}
    return names.get(type(value), "null")


def _broken_json(path: Path, error: json.JSONDecodeError, row: int | None) -> UserError:
    where = f"row {row} is broken JSON" if row else "broken JSON"
    return UserError(
        f"{path}: {where}: line {error.lineno}, column {error.colno}: {error.msg}",
        hint=_show(error.doc, error.pos),
    )


def _show(text: str, place: int) -> str:
    near = text[max(0, place - 30) : place + 30].replace("\n", "⏎").rstrip("⏎")
    return f"Near: {near}"


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: the file cannot be read: {error}")


def _suffix(path: Path) -> str:
    """The suffix that tells the kind: ``.jsonl`` of ``x.jsonl.gz``."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".gzip"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _looks_like_hub_name(name: str) -> bool:
    if not _HUB_NAME.fullmatch(name) or _suffix(Path(name)) in (*SUFFIXES, *TEXT_SUFFIXES):
        return False
    # "data/reviews" beside an existing folder "data" is a misspelt path, not a name.
    return not name.endswith(".gz") and not ("/" in name and Path(name).parent.is_dir())


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: there is no such file or folder", hint=_neighbours(path))


def _neighbours(path: Path) -> str | None:
    """The names in the folder that are most like the one asked for."""
    import difflib

    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        return f"The folder {path.parent} does not exist; the nearest that does is {folder.resolve()}."
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    data = [name for name in names if _suffix(Path(name)) in SUFFIXES]
    listed = close or data[:5]
    return f"In {folder.resolve()} there is: {', '.join(listed)}" if listed else None

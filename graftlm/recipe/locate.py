"""Where the paths of a recipe lead, and names made from those of files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from graftlm.data.readers import SUFFIXES, TEXT_SUFFIXES, find_sources
from graftlm.data.templates import BUILT_IN
from graftlm.errors import UserError, nearest
from graftlm.recipe.schema import folder_name

TEMPLATES = ("auto", "tokenizer", *BUILT_IN)
_ENDINGS = (*SUFFIXES, *TEXT_SUFFIXES, ".gz", ".yaml", ".yml")


def data_path(name: str, folder: Path) -> str:
    """Files and folders are looked for in the recipe's folder; what is none there may be a name of the Hub."""
    place = folder / Path(name).expanduser()
    beside = "/" in name and place.parent.is_dir()  # data/reviews beside an existing folder data: a misspelt path
    if not place.exists() and not beside and not Path(name).exists():
        with suppress(UserError):
            return find_sources(name)[0]
    find_sources(place)
    return str(place)


def adapter_folder(name: str, folder: Path) -> str:
    """The folder of an adapter that was saved earlier."""
    place = folder / Path(name).expanduser()
    if not any((place / file).is_file() for file in ("graftlm.json", "adapter_config.json")):
        raise UserError(f"{place} is no folder of a saved adapter")
    return str(place)


def python_file(name: str, folder: Path) -> str:
    """FILE.py:FUNCTION with the absolute path of the file."""
    file, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise UserError(f"'{name}' must be FILE.py:FUNCTION, such as rewards.py:right")
    place = folder / Path(file).expanduser()
    if not place.is_file():
        raise UserError(f"{place}: there is no such file")
    return f"{place}:{function}"


def base_folder(name: str, folder: Path) -> str:
    """A folder as an absolute path; an embedded base or a Hub name as it is."""
    from graftlm.base.loading import EMBEDDED, PACKAGED, resolve_base

    place = folder / Path(name).expanduser()
    if name in EMBEDDED:
        return name
    if name in PACKAGED:
        resolve_base(name)
        return name
    if place.exists() or Path(name).exists():  # what stands in the working folder alone is not meant
        return resolve_base(str(place))
    return resolve_base(name)


def name_from(path: str) -> str:
    """A name fit for a folder from that of a file: reviews of data/reviews.jsonl.gz."""
    stem = Path(path).name
    while Path(stem).suffix.lower() in _ENDINGS:
        stem = Path(stem).stem
    name = "".join(sign if sign.isalnum() or sign in "_-+." else "-" for sign in stem).strip("-.+")[:60].rstrip(".")
    try:
        return folder_name(name)
    except ValueError:
        return "run"


def chat_template(name: str, folder: Path | None) -> str:
    """A known name, or the absolute path of a file; without a folder a path stays as it is written."""
    if name in TEMPLATES:
        return name
    place = (folder or Path()) / Path(name).expanduser()
    if folder is not None and place.is_file():
        return str(place)
    if not place.suffix and "/" not in name:
        guess = nearest(name, list(TEMPLATES))
        raise UserError(
            f"no chat template '{name}'; there are: {', '.join(TEMPLATES)}, or the path of a file",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    if folder is not None:
        raise UserError(f"{place}: there is no such file")
    return name

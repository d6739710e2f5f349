"""graftlm adapters: look at, rename and remove adapter folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from graftlm.cli.console import as_size, console
from graftlm.errors import UserError
from graftlm.evaluation.speakers import check_folders

app = typer.Typer(help="List, show, rename and remove adapter folders.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="An adapter's folder.")]


@app.command("list")
def list_adapters(
    folder: Annotated[Path, typer.Argument(help="Where to look, all folders below included.")] = Path("runs"),
) -> None:
    """List the adapters below a folder, with loss and exact answers on held-out rows."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", hint="Name the folder that holds your runs.")
    from graftlm.adapters.files import NOTES
    from graftlm.adapters.stored import CONFIG

    folders = sorted({path.parent for file in (CONFIG, NOTES) for path in folder.rglob(file)})
    # Hidden folders are what a killed process was writing.
    found = [path for path in folders if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    if not found:
        raise UserError(f"no adapters below {folder}", hint="Train one: graftlm train --data FILE")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("adapter", "method", "base", "loss", "exact", "size"):
        table.add_column(column, overflow="fold")
    for path in found:
        facts = _facts(path)
        table.add_row(
            escape(str(path)), facts["method"], facts["base"], facts["loss"], facts["accuracy"], facts["size"]
        )
    console.print(table)


@app.command("show")
def show(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="The whole graftlm.json.")] = False
) -> None:
    """Show what an adapter is, what it was trained on, and how it did."""
    check_folders([folder])
    from graftlm.adapters.files import read_config, read_notes

    config, notes = read_config(folder), read_notes(folder)
    if as_json:
        typer.echo(json.dumps(notes or config, indent=2, ensure_ascii=False))
        return
    facts = _facts(folder)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("folder", f"{folder} ({facts['size']})")
    table.add_row("method", facts["method"])
    if config.get("target_modules"):
        table.add_row("layers", ", ".join(config["target_modules"]))
    if notes.get("ranks"):
        table.add_row("ranks", escape(_rank_lines(notes["ranks"])))
    if head := notes.get("head"):
        table.add_row("predicts", escape(_predicted(head)))
    table.add_row("base", facts["base"])
    if notes:
        table.add_row("fingerprint", f"{notes['base']['fingerprint'][:32]}…")
        template = notes.get("template") or {}
        table.add_row("chat template", f"{template.get('name', 'unknown')} ({notes.get('template_hash', '')[:12]})")
        for name, counts in (notes.get("data") or {}).items():
            dropped, truncated = sum(counts["dropped"].values()), sum(counts["truncated"].values())
            table.add_row(f"data: {name}", f"{counts['kept']} rows kept, {truncated} truncated, {dropped} dropped")
        if record := notes.get("trained_on"):
            table.add_row("trained on", escape(_trained_on(record)))
        if under := notes.get("under"):
            table.add_row("on top of", "\n".join(escape(path) for path in under))
        for key, value in (notes.get("metrics") or {}).items():
            if isinstance(value, dict):
                value = ", ".join(f"{name}: {_number(key, _main(each))}" for name, each in value.items())
            table.add_row(key.replace("_", " "), _number(key, value))
        for key, value in (notes.get("versions") or {}).items():
            table.add_row(key, str(value))
    else:
        table.add_row("written by", "peft (no graftlm.json)")
    console.print(table)


@app.command("rename")
def rename(folder: Folder, name: Annotated[str, typer.Argument(help="The new name.")]) -> None:
    """Rename an adapter's folder, and the name inside it."""
    check_folders([folder])
    from graftlm.adapters.files import NOTES, read_config, read_notes
    from graftlm.base.files import disk_errors, write_json

    read_config(folder)
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"'{name}' is not a folder name", hint="Give a name, not a path.")
    target = (folder.resolve() if folder.name in ("", "..") else folder).parent / name
    if target.exists():
        raise UserError(f"{target} exists already", hint="Choose another name.")
    notes = read_notes(folder)
    if notes:
        write_json(folder / NOTES, {**notes, "name": name})
    with disk_errors(target):
        folder.rename(target)
    console.print(f"{folder} → {target}", markup=False)


@app.command("remove")
def remove(folder: Folder, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete an adapter's folder."""
    check_folders([folder])
    from graftlm.adapters.files import read_config
    from graftlm.base.files import disk_errors

    read_config(folder)
    if not yes:
        typer.confirm(f"Delete {folder}?", abort=True)
    with disk_errors(folder):
        shutil.rmtree(folder)
    console.print(f"removed {folder}", markup=False)


def _number(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1%}" if key.endswith("accuracy") else f"{value:.4f}"


def _main(value: Any) -> Any:
    """The number that stands for a group of them."""
    return next(iter(value.values())) if isinstance(value, dict) else value


def _trained_on(record: dict[str, Any]) -> str:
    """How many rows, of which families of tasks and languages, as far as it is recorded."""
    tasks, languages = record.get("tasks") or {}, record.get("languages") or {}
    lines = [f"{record.get('rows', 0):,} rows of {len(record.get('files') or ())} files".replace(" 1 files", " 1 file")]
    lines += [
        f"{what}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
        for what, counts in (("families", tasks), ("languages", languages))
        if counts
    ]
    return "\n".join([*lines, *(f"not known: {gap}" for gap in record.get("gaps") or ())])


def _predicted(head: dict[str, Any]) -> str:
    """What an adapter with a head predicts."""
    kinds = {
        "classifier": "one label a row",
        "tagger": "a label a word",
        "verbalizer": "a word for one label a row",
    }
    return f"{kinds.get(head['type'], head['type'])}: {', '.join(head['labels'])}"


def _rank_lines(ranks: dict[str, int]) -> str:
    """Ranks of all matrices, a line for each layer."""
    from graftlm.evaluation.rank_charts import rank_map

    found = rank_map(ranks)
    if found is None:
        return ""
    lines = []
    for label, cells in found.rows:
        named = [f"{name} {rank}" for name, rank in zip(found.columns, cells, strict=True) if rank is not None]
        lines.append(f"{label or '–'}: {', '.join(named)}")
    return "\n".join(lines)


def _facts(folder: Path) -> dict[str, str]:
    """What a table says of one adapter."""
    from graftlm.adapters.files import describe_method, read_config, read_notes

    try:
        config, notes = read_config(folder), read_notes(folder)
    except UserError as error:
        return dict.fromkeys(("base", "loss", "accuracy", "size"), "") | {"method": f"unreadable: {error.message}"}
    metrics: dict[str, Any] = notes.get("metrics") or {}
    base = (notes.get("base") or {}).get("name") or config.get("base_model_name_or_path") or "?"
    loss, accuracy = metrics.get("held_out_loss"), metrics.get("held_out_accuracy")
    return {
        "method": describe_method(config, notes),
        "base": str(base),
        "loss": f"{loss:.4f}" if loss is not None else "",
        "accuracy": f"{accuracy:.1%}" if accuracy is not None else "",
        "size": as_size(sum(path.stat().st_size for path in folder.iterdir() if path.is_file())),
    }

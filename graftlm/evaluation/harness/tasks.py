"""Our tasks as those of lm-evaluation-harness: YAML, and rows in JSON lines beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.base.files import write_texts
from graftlm.errors import UserError
from graftlm.evaluation.tasks.items import Item, read_items
from graftlm.evaluation.tasks.task import EvalTask

PREFIX, TAG = "graftlm_", "graftlm"
OURS = "# Written by graftlm"  # how a file begins that may be replaced
WITHOUT_SPACES = ("zh", "ja")  # no space stands before an answer in these languages
SCORE = "graftlm.evaluation.harness.scoring.score_row"


@dataclass(frozen=True)
class Written:
    """What was written: the names by which the harness knows the tasks, and why some are not among them."""

    folder: Path
    names: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def write_harness_tasks(tasks: Sequence[EvalTask], folder: Path) -> Written:
    """Write tasks for ``lm_eval --include_path FOLDER --tasks graftlm``; all of them, or none.

    Prompts are plain text: a system message stands before what is asked. Written answers are scored by graftlm's own
    scorers, which must be installed where the harness runs.

    Raises:
        UserError: a task's rows do not go with it, a file of the same name is somebody else's, or the disk is full.
    """
    texts: dict[Path, str] = {}
    left_out: dict[str, str] = {}
    names = []
    for task in tasks:
        if task.keys.kind == "classify":
            left_out[task.name] = "it asks for the label of an adapter's head, which the harness does not know"
            continue
        name = PREFIX + task.name
        rows = (folder / f"{name}.jsonl").absolute()
        items = read_items(task)
        settings = _settings(task, name, rows)
        texts[folder / f"{name}.yaml"] = "".join(_yaml(task, settings))
        several = any(len(item.right) > 1 for item in items)
        texts[rows] = "".join(json.dumps(_row(task, item, several), ensure_ascii=False) + "\n" for item in items)
        names.append(name)
    for path in texts:
        if path.suffix == ".yaml" and path.exists() and not path.read_text("utf-8", "replace").startswith(OURS):
            raise UserError(f"{path} is there, and not of graftlm's making", hint="Choose another folder.")
    write_texts(texts)
    return Written(folder, tuple(names), left_out)


def _settings(task: EvalTask, name: str, rows: Path) -> dict[str, Any]:
    kind = task.keys.kind
    common = {
        "task": name,
        "task_alias": task.title,
        "tag": TAG,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
    }
    last = {"num_fewshot": 0, "metadata": {"version": 1.0, "graftlm_task": task.hash}}
    if kind == "perplexity":
        texts = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
        return {**common, **texts, "metric_list": _metrics(_PERPLEXITIES, "weighted_perplexity"), **last}
    if kind == "generate":
        scorers = [scorer.name for scorer in task.keys.all_scorers]
        return {
            **common,
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "references",
            "process_results": f"!function {SCORE}",
            "generation_kwargs": {
                "until": list(task.keys.stop),
                "max_gen_toks": task.keys.max_tokens,
                "do_sample": False,
                "temperature": 0.0,
            },
            "metric_list": _metrics(scorers, "mean", higher=True),
            **last,
        }
    return {
        **common,
        "output_type": "multiple_choice",
        "doc_to_text": "" if kind == "pairs" else "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": _delimiter(task),
        "metric_list": _metrics(_first_of(task.keys.normalise), "mean", higher=True),
        **last,
    }


_PERPLEXITIES = ("byte_perplexity", "bits_per_byte")  # no mean over words: text without spaces has next to none
_ACCURACIES = {"sum": "acc", "byte": "acc_bytes"}  # the harness has no mean over tokens


def _first_of(normalise: str) -> list[str]:
    first = _ACCURACIES.get(normalise, "acc")
    return [first, *(name for name in ("acc", "acc_bytes", "acc_norm") if name != first)]


def _metrics(names: Sequence[str], aggregation: str, *, higher: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            "aggregation": name if name == "bits_per_byte" else aggregation,
            "higher_is_better": higher,
        }
        for name in names
    ]


def _delimiter(task: EvalTask) -> str:
    """What stands between a prompt and an answer, which both have no blanks around them."""
    return "" if task.keys.kind == "pairs" or task.keys.language.startswith(WITHOUT_SPACES) else " "


def _row(task: EvalTask, item: Item, several: bool) -> dict[str, Any]:
    """A row as the harness reads it. ``several``: some row of the task has more than one right choice."""
    kind = task.keys.kind
    place = {"source": Path(item.source).name, "row": item.row}
    if kind == "perplexity":
        return {"text": item.candidates[0], **place}
    prompt = {"prompt": _prompt(item)} if kind != "pairs" else {}
    if kind != "generate":
        answer = list(item.right) if several else item.right[0]
        return {**prompt, "choices": list(item.candidates), "answer": answer, **place}
    scorers = [
        {**scorer.model_dump(), "python": scorer.python and _absolute(task, scorer.python)}
        for scorer in task.keys.all_scorers
    ]
    values = json.dumps(dict(item.values), ensure_ascii=False, default=str)
    own = {"scorers": json.dumps(scorers, ensure_ascii=False), "values": values}
    return {**prompt, "references": list(item.references), **own, **place}


def _prompt(item: Item) -> str:
    return "\n\n".join(message.content for message in item.messages)


def _absolute(task: EvalTask, python: str) -> str:
    file, _, function = python.rpartition(":")
    return f"{(task.folder / Path(file).expanduser()).absolute()}:{function}"


def _yaml(task: EvalTask, settings: Mapping[str, Any]) -> Iterator[str]:
    yield f"{OURS} of its task {task.name}. If this folder is moved, write it anew: data_files must be absolute.\n"
    for key, value in settings.items():
        function = isinstance(value, str) and value.startswith("!function ")
        yield f"{key}: {value if function else json.dumps(value, ensure_ascii=False)}\n"

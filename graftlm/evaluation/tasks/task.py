"""A task of an evaluation: which rows there are, what is asked of each, and how the answers are scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from graftlm.evaluation.choices import Normalise

Kind = Literal["choice", "generate", "perplexity", "pairs", "preference", "classify"]


def _listed(value: Any) -> Any:
    """One text or a list of them, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Jinja = Annotated[str, Field(min_length=1)]

#: Which keys a kind needs, and which it may have besides those of every kind.
NEEDS: dict[str, tuple[str, ...]] = {
    "choice": ("prompt", "choices", "answer"),
    "generate": ("prompt", "answer"),
    "perplexity": ("text",),
    "pairs": ("good", "bad"),
    "preference": ("prompt", "chosen", "rejected"),
    "classify": ("prompt", "answer"),
}
MAY: dict[str, tuple[str, ...]] = {
    "choice": ("system", "normalise", "stereotyped", "unknown", "shots", "shots_path", "demonstration"),
    "generate": ("system", "scorers", "max_tokens", "stop", "shots", "shots_path", "demonstration"),
    "perplexity": ("neutral",),
    "pairs": ("normalise",),
    "preference": ("system", "normalise"),
    "classify": ("system",),
}
#: The metrics of a kind; the first is the default. Those of ``generate`` are its scorers.
METRICS_OF: dict[str, tuple[str, ...]] = {
    "choice": ("accuracy", "matthews", "f1", "mass", "ece", "bias", "loss"),
    "generate": (),
    "perplexity": ("perplexity", "loss", "bits"),
    "pairs": ("accuracy", "bias"),
    "preference": ("accuracy",),
    "classify": ("accuracy", "matthews", "f1"),
}


class Scorer(BaseModel):
    """How a written answer is scored, from 0 (wrong) to 1 (right)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1,
        description="exact, f1, rouge_l, chrf, number, regex, refusal, no_refusal or python; or a name of your own "
        "where regex or python is given.",
    )
    regex: str | None = Field(None, description="What an answer must hold; the answer is group 1, if there is one.")
    python: str | None = Field(None, description="FILE.py:FUNCTION, called as function(answer, references, row).")


def _scorers(value: Any) -> Any:
    """A name alone is a scorer too."""
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"name": entry} if isinstance(entry, str) else entry for entry in entries)


class TaskKeys(BaseModel):
    """The keys of a task's file. Patterns are Jinja over the columns of a row; ``row['a b']`` is a column by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("", description="What the report calls it. Left out: the file's name.")
    about: str = Field("", description="One line on what it measures.")
    group: str = Field(
        "capability", description="What it is part of: capability, helpfulness, honesty, harmlessness, or your own."
    )
    family: str = Field("", description="Family of tasks, as adapters record it of what they were trained on.")
    language: str = Field("", description="Language as a code, such as en.")
    licence: str = Field("", description="Licence of the rows.")
    kind: Kind = Field(
        description="choice: the likeliest of some answers; generate: an answer is written; perplexity: of texts; "
        "pairs: which of two texts is likelier; preference: which of two answers; classify: by an adapter's head.",
    )
    path: Names = Field(min_length=1, description="File, folder or set, or a list; relative to this file.")
    split: str | None = Field(None, description="Split of a set. Left out: its first besides train, if there is one.")
    unfold: Names = Field((), description="Lists inside a row, from the outside in: each of their entries is a row.")
    where: Jinja | None = Field(None, description="Only rows where this is true: \"{{ label != 'none' }}\".")
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="At most so many rows, drawn by the seed.")
    seed: int = Field(0, ge=0, description="Seed of the rows and demonstrations that are drawn.")
    system: Jinja | None = Field(None, description="Pattern of the system message.")
    prompt: Jinja | None = Field(None, description="Pattern of what is asked.")
    choices: tuple[str, ...] | Jinja | None = Field(
        None, description="The answers to choose from: a list, or a pattern that gives one: '{{ options }}'."
    )
    answer: Jinja | None = Field(
        None, description="Pattern of the right answer: a text, or the number of a choice from 0; or a list of these."
    )
    text: Jinja | None = Field(None, description="perplexity: pattern of the text.")
    good: Jinja | None = Field(None, description="pairs: the text that should be likelier; of bias: the one untypical.")
    bad: Jinja | None = Field(None, description="pairs: the other text; of bias: the stereotyped one.")
    chosen: Jinja | None = Field(None, description="preference: the better answer.")
    rejected: Jinja | None = Field(None, description="preference: the worse answer.")
    stereotyped: Jinja | None = Field(None, description="bias: the choice that follows a stereotype, as in answer.")
    unknown: Jinja | None = Field(None, description="bias: the choice that says it cannot be known, as in answer.")
    normalise: Normalise = Field("sum", description="Likelihood as a sum, or a mean over tokens or bytes.")
    metric: str | None = Field(None, description="The score that is compared. Left out: the first of the kind.")
    scorers: Annotated[
        tuple[Scorer, ...], BeforeValidator(_scorers, json_schema_input_type=str | list[str | Scorer])
    ] = Field((), description="generate: how answers are scored; the first is compared. Left out: exact and f1.")
    max_tokens: Annotated[int, Field(ge=1)] = Field(64, description="generate: longest answer.")
    stop: Names = Field((), description="generate: texts that end an answer.")
    shots: Annotated[int, Field(ge=0, le=32)] = Field(0, description="Solved examples before each question.")
    shots_path: str | None = Field(None, description="Where they come from. Left out: other rows of the task.")
    demonstration: Jinja = Field("{{ prompt }} {{ answer }}", description="Pattern of a solved example.")
    neutral: bool = Field(False, description="perplexity: the texts on which drift from the base is measured.")

    @model_validator(mode="after")
    def _fits(self) -> TaskKeys:
        given = self.model_fields_set
        lacking = [key for key in NEEDS[self.kind] if key not in given]
        if lacking:
            raise ValueError(f"kind: {self.kind} needs {', '.join(NEEDS[self.kind])}; missing: {', '.join(lacking)}")
        known = {*NEEDS[self.kind], *MAY[self.kind]}
        special = {key for keys in (*NEEDS.values(), *MAY.values()) for key in keys}
        strange = sorted((given & special) - known)
        if strange:
            raise ValueError(f"{strange[0]}: is not for {self.kind}, which has: {', '.join(sorted(known))}")
        allowed = METRICS_OF[self.kind] or tuple(scorer.name for scorer in self.all_scorers)
        if self.metric is not None and self.metric not in allowed:
            raise ValueError(f"metric: must be one of {', '.join(allowed)} for {self.kind}, is '{self.metric}'")
        if isinstance(self.choices, tuple) and (len(self.choices) < 2 or len(set(self.choices)) < len(self.choices)):
            raise ValueError("choices: needs two different answers or more")
        if self.metric == "bias" and self.kind == "choice" and not (self.stereotyped and self.unknown):
            raise ValueError("metric: bias needs stereotyped and unknown")
        return self

    @property
    def all_scorers(self) -> tuple[Scorer, ...]:
        """Those given, or exact and f1 for what is written."""
        if self.scorers or self.kind != "generate":
            return self.scorers
        return (Scorer(name="exact", regex=None, python=None), Scorer(name="f1", regex=None, python=None))

    @property
    def primary(self) -> str:
        """The score that is compared."""
        return self.metric or next(iter(METRICS_OF[self.kind] or [scorer.name for scorer in self.all_scorers]))

    def patterns(self) -> Iterator[tuple[str, str]]:
        """All patterns over the columns of a row, each with its key."""
        keys = ("where", "system", "prompt", "choices", "answer", "text", "good", "bad", "chosen", "rejected")
        for key in (*keys, "stereotyped", "unknown"):
            source = getattr(self, key)
            if isinstance(source, str):
                yield key, source


@dataclass(frozen=True)
class EvalTask:
    """A task with its name and the folder that its paths are relative to."""

    name: str
    keys: TaskKeys
    folder: Path

    @property
    def title(self) -> str:
        return self.keys.title or self.name

    @property
    def paths(self) -> list[Path]:
        return [self.folder / Path(path).expanduser() for path in self.keys.path]

    @property
    def hash(self) -> str:
        """Of all settings; the rows are not in it (they have a hash of their own)."""
        text = json.dumps(self.keys.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

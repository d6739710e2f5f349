"""The recipe of a set: sources, filters, a mixture and splits; read from YAML with the line of every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from graftlm.data.criteria import criterion_name, definitions
from graftlm.errors import UserError
from graftlm.recipe.problems import KeyPath
from graftlm.recipe.schema import Names, Pattern
from graftlm.recipe.strict import listed, missing_files, parse_keys, read_text

PROMPTSOURCE = "promptsource:"  # templates of a file: promptsource:templates.jsonl.gz#glue/sst2
UNSEEN = "unseen"  # the split of task families that are held out
Words = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceKeys(_Keys):
    """Files that instances are made of, and how."""

    path: Names = Field(
        min_length=1, description="File, folder or set, or a list of them; relative to the recipe's folder."
    )
    sha256: Names = Field((), description="What the files must be, in the order of path. Left out: whatever they are.")
    licence: str = Field("", description="Licence of the source, written to every instance.")
    task: str = Field("", description="Family of the task, where the instances do not say.")
    language: str = Field("", description="Language as a code, such as en, where the instances do not say.")
    families: dict[str, Names] = Field(
        {}, description="Family of the task by patterns of the template's name: {paraphrase: ['glue_mrpc*', 'paws*']}."
    )
    criterion: str = Field(
        "", description="What the answers of preference rows are judged by, where the rows do not say: harmless."
    )
    join_answers: bool = Field(
        False,
        description="Whether labelled and rated answers to one prompt become one instance that compares them. The "
        "source is held in memory then.",
    )
    split: str | None = Field(
        None, description="Split of a set, or by the column split of labelled rows with a template. Left out: train."
    )
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="Read so many rows of each file at most.")
    max_dropped: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Largest share of rows that may be of no use before the build stops. Left out: any."
    )
    prompt: Pattern | None = Field(None, description="Pattern of the prompt over the columns: 'Review: {text}'.")
    answer: Pattern | None = Field(None, description="Pattern of the answer: '{label}'.")
    system: Pattern | None = Field(None, description="Pattern of the system message.")
    variables: dict[str, str] = Field({}, description="Values of the {{name}} placeholders in the rows.")
    template: str | None = Field(
        None,
        description="What words labelled rows: a name of `data templates`, a YAML file, or promptsource:FILE#NAME.",
    )
    columns: dict[str, str] = Field({}, description="Which column serves a field of the template: {text: body}.")
    classes: dict[str, Names] = Field(
        {}, description="For PromptSource: words of a field in the order of its numbers: {label: [negative, positive]}."
    )
    group: str | None = Field(
        None,
        description="Column whose equal values stay on one side of splits: story; of a set, a field such as user.",
    )
    join: str | None = Field(None, description="Another file whose columns are added as joined.NAME, for a template.")
    join_on: str = Field("id", description="The column that both files have, for join.")
    labels: dict[str, str] = Field({}, description="How labels are spelt in the file: {'5': positive}.")
    demonstrations: tuple[Annotated[int, Field(ge=0, le=8)], Annotated[int, Field(ge=0, le=8)]] = Field(
        (0, 0), description="Fewest and most solved examples in a prompt, from training rows only."
    )
    demonstrations_from: Names = Field((), description="Files of rows for the demonstrations. Left out: those of path.")
    few_shot_ratio: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Share of rows with demonstrations. Left out: as their number is drawn."
    )
    all_descriptions: bool = Field(False, description="One instance for each description, not for one drawn.")
    descriptions: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Numbers of the template's descriptions that are used, from 1. Left out: all."
    )
    inverted: bool = Field(False, description="The task the other way round: the input from the output.")

    @model_validator(mode="after")
    def _fits(self) -> SourceKeys:
        if self.template is not None and (self.prompt or self.answer or self.system):
            raise ValueError("template: give it or patterns (prompt, answer, system), not both")
        made = ("columns", "classes", "labels", "few_shot_ratio", "all_descriptions", "descriptions", "inverted")
        if self.template is None and (any(getattr(self, key) for key in made) or self.demonstrations[1]):
            raise ValueError(f"template: {', '.join(made)} and demonstrations need one")
        if self.join is not None and (self.template is None or self.template.startswith(PROMPTSOURCE)):
            raise ValueError("join: needs a task template, which names the columns that it uses")
        if self.join is None and self.join_on != "id":
            raise ValueError("join_on: goes with join")
        if self.sha256 and len(self.sha256) != len(self.path):
            raise ValueError(f"sha256: must have an entry for each path, has {len(self.sha256)} for {len(self.path)}")
        if self.task and self.families:
            raise ValueError("families: give them or one task, not both")
        return self


class FilterKeys(_Keys):
    """What is removed. Words are signs in Chinese and Japanese."""

    empty_answers: bool = Field(True, description="Remove answers without a letter, digit or symbol.")
    copied_answers: bool = Field(False, description="Remove answers that are the prompt or a paragraph of it.")
    min_prompt: Words = Field(0, description="Fewest words of a prompt.")
    max_prompt: Words | None = Field(None, description="Most words of a prompt.")
    min_answer: Words = Field(0, description="Fewest words of an answer.")
    max_answer: Words | None = Field(None, description="Most words of an answer.")
    languages: Names = Field((), description="Languages that are kept. Left out: all.")
    unknown_language: bool = Field(True, description="Keep instances whose language nothing tells.")
    words: str | None = Field(None, description="A file of words and phrases, one a line; what holds one is removed.")
    duplicates: bool = Field(True, description="Remove what is equal to an earlier one but for white space and case.")
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Remove what is as alike as this to an earlier one (Jaccard of three words in a row): 0.8."
    )
    overlap: dict[str, Names] = Field({}, description="Evaluation sets by name, with their files; see overlap_words.")
    overlap_words: Annotated[int, Field(ge=3)] = Field(
        13, description="Remove what shares so many words in a row with an evaluation set."
    )
    shared_answers: dict[str, Names] = Field(
        {}, description="Evaluation sets by name, with their files; remove what has an answer of theirs, in any case."
    )
    contradictions: bool = Field(False, description="Remove all instances of one input whose answers differ.")
    balance: Annotated[float, Field(ge=1)] | None = Field(
        None, description="Most instances of a label, as a multiple of the rarest, in sources of at most 20 answers."
    )


class MixtureKeys(_Keys):
    """How much of each task is taken."""

    method: Literal["proportional", "temperature", "fixed"] = Field(
        "proportional", description="Shares by size (with a cap), by a power of the size, or as given."
    )
    by: Literal["source", "task", "template", "language"] = Field("source", description="What a task of it is.")
    cap: Annotated[int, Field(ge=1)] | None = Field(None, description="Most of a task that counts for its share.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="1: by size; large values: equal shares.")
    shares: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="Shares by task, for fixed.")
    total: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Size of all splits together. Left out: as much as there is without repeating a row."
    )
    unit: Literal["rows", "tokens"] = Field("rows", description="What cap and total count.")
    tokenizer: str = Field("tiny", description="The base whose tokenizer counts, for tokens.")
    repeat: bool = Field(False, description="Take training rows more than once where a task has too few.")
    held_out: Names = Field((), description=f"Task families that go to the split {UNSEEN} as a whole.")

    @model_validator(mode="after")
    def _fits(self) -> MixtureKeys:
        if (self.method == "fixed") != bool(self.shares):
            raise ValueError("shares: fixed needs them, and nothing else does")
        if self.temperature != 1.0 and self.method != "temperature":
            raise ValueError("temperature: is for the method temperature")
        if self.repeat and self.total is None:
            raise ValueError("repeat: needs a total")
        return self


def _splits(splits: dict[str, float]) -> dict[str, float]:
    if sum(splits.values()) >= 1:
        raise ValueError("nothing is left to train on: the shares must add up to less than 1")
    if reserved := {"train", UNSEEN} & set(splits):
        raise ValueError(f"the split '{min(reserved)}' is made by itself")
    return splits


def _criteria(own: dict[str, str]) -> dict[str, str]:
    try:
        definitions(own)
    except UserError as error:
        raise ValueError(error.message) from error
    return {criterion_name(name): text.strip() for name, text in own.items()}


class SetRecipe(_Keys):
    """What a set is made of."""

    seed: int = Field(0, ge=0, description="Seed of all that is drawn.")
    sources: dict[str, SourceKeys] = Field(
        min_length=1, examples=["{reviews: {path: reviews.csv}}"], description="Each under a name of your choice."
    )
    criteria: Annotated[dict[str, str], AfterValidator(_criteria)] = Field(
        {},
        description="Definitions of criteria of your own, for the card: {polite: Greets, and blames nobody.}.",
    )
    filters: FilterKeys = FilterKeys()
    mixture: MixtureKeys = MixtureKeys()
    splits: Annotated[dict[str, Share], AfterValidator(_splits)] = Field(
        {}, description="Further splits with their share, such as {test: 0.1}; rows with one input stay together."
    )
    rows_per_shard: Annotated[int, Field(ge=1)] = Field(100_000, description="Rows of a Parquet file.")

    @model_validator(mode="after")
    def _fits(self) -> SetRecipe:
        for name, source in self.sources.items():
            if self.splits and source.demonstrations[1] and not source.demonstrations_from:
                raise ValueError(
                    f"sources: the demonstrations of '{name}' could be rows that splits keeps from training; name "
                    "other files for them in demonstrations_from, or leave splits out"
                )
        return self


def load_set_recipe(path: str | Path, *, folder: Path | None = None) -> tuple[SetRecipe, str]:
    """A recipe and its text. ``folder``: what its paths are relative to, by default that of the file.

    Raises:
        UserError: the file cannot be read.
        RecipeError: all of its mistakes, each with its line.
    """
    file = Path(path)
    text = read_text(file, "recipe")
    return parse_set_recipe(text, str(path), folder=folder or file.expanduser().resolve().parent), text


def parse_set_recipe(text: str, source: str = "recipe.yaml", *, folder: Path) -> SetRecipe:
    """The recipe of a text.

    Raises:
        RecipeError: all of its mistakes, each with its line.
    """
    expected = "a recipe must be a mapping (sources: …)"
    return parse_keys(text, source, SetRecipe, expected, look=lambda value: _missing_files(value, folder))


def _missing_files(value: Mapping[str, Any], folder: Path) -> list[tuple[KeyPath, str]]:
    """Every path of the recipe that leads nowhere, whatever else is wrong with it."""
    paths: list[tuple[KeyPath, Any]] = []
    for name, source in _mapping(value.get("sources")).items():
        for key in ("path", "demonstrations_from", "join"):
            paths += [(("sources", name, key), path) for path in listed(_mapping(source).get(key))]
    filters = _mapping(value.get("filters"))
    for key in ("overlap", "shared_answers"):
        for name, files in _mapping(filters.get(key)).items():
            paths += [(("filters", key, name), path) for path in listed(files)]
    problems = missing_files(paths, folder)
    words = filters.get("words")
    if isinstance(words, str) and not (folder / Path(words).expanduser()).is_file():
        problems.append((("filters", "words"), f"{folder / words}: there is no such file"))
    return problems


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

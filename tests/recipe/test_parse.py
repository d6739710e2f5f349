# ruff: noqa: E501 (messages as they are)
from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from graftlm.adapters import LoRA
from graftlm.data.heads import HeadSettings
from graftlm.errors import UserError
from graftlm.recipe import Recipe, RecipeError, load_recipe, parse_recipe, recipe_for_data_files, recipe_from_dict
from graftlm.recipe.schema import known_methods
from graftlm.training.settings import AdapterTraining, RunSettings

METHODS = ", ".join(known_methods())

GOOD = """\
base: tiny
data:
  reviews:
    path: reviews.csv
    prompt: "Review: {text}\\nSentiment:"
    answer: "{label}"
adapters:
  lora-8:  {method: lora, rank: 8, data: reviews, learning_rate: 2e-4, batch_rows: 4}
  lora-64: {method: lora, rank: 64, dropout: 0.1}
training: {epochs: 2, batch_tokens: 4096, micro_batch_tokens: 8192, eval_every: 50}
log: [tensorboard]
"""

METHODS = ", ".join(known_methods())


def errors(text: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(dedent(text), folder=folder)
    head, *lines = caught.value.message.splitlines()
    assert head == f"recipe.yaml has {len(lines)} error{'s' * (len(lines) != 1)}:"
    return [line.removeprefix("  ") for line in lines]


def with_data(**keys: object) -> dict[str, object]:
    adapters = {"a": {"method": "lora"}}
    return {"base": "tiny", "data": {"d": {"path": "d.csv", **keys}}, "adapters": adapters}


def with_adapter(**keys: object) -> dict[str, object]:
    return {**with_data(), "adapters": {"a": {"method": "lora", **keys}}}


def one_error(values: dict[str, object]) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(values)
    (problem,) = caught.value.problems
    return str(problem)


def test_values():
    recipe = parse_recipe(GOOD, source="runs/try-1.yaml")
    assert (recipe.name, recipe.base, recipe.log) == ("try-1", "tiny", ("tensorboard",))
    assert recipe.training == RunSettings(micro_batch_tokens=8192, eval_every=50)
    assert recipe.data["reviews"].path == ("reviews.csv",)
    assert recipe.data["reviews"].reading()["answer"] == "{label}"
    small, large = recipe.adapters["lora-8"], recipe.adapters["lora-64"]
    assert small.method == LoRA(rank=8)
    assert large.method == LoRA(rank=64, dropout=0.1)
    assert small.data == large.data == ("reviews",)  # the only data set need not be named
    assert large.training == AdapterTraining(epochs=2, batch_tokens=4096)
    assert small.training == AdapterTraining(epochs=2, batch_rows=4, learning_rate=2e-4)


def test_values_are_frozen():
    recipe = parse_recipe(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        recipe.base = "other"  # type: ignore[misc]


def test_an_adapters_batch_tokens_displace_batch_rows_for_all():
    recipe = recipe_from_dict({**with_adapter(batch_tokens=100), "training": {"batch_rows": 4}})
    assert recipe.adapters["a"].training == AdapterTraining(batch_tokens=100)


def test_three_errors_at_once_each_with_its_line():
    assert errors("""\
        base: tiny
        data:
          reviews:
            pth: reviews.csv
            path: reviews.csv
        adapters:
          lora-8:  {method: lora, rank: 0, data: reviews}
          other:   {method: lora, data: reviews}
          lora-64: {method: lora, rank: 64, data: review}
        """) == [
        "line 4, data.reviews.pth: unknown key; did you mean 'path'?",
        "line 7, adapters.lora-8.rank: must be at least 1, is 0",
        "line 9, adapters.lora-64.data: no data set 'review'; there are: reviews",
    ]


def test_problems_have_columns():
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace("rank: 8", "rank: 0"))
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (8, 27)
    assert problem.path == ("adapters", "lora-8", "rank")


def test_unknown_keys_at_all_levels():
    assert errors("""\
        base: tiny
        bse: tiny
        data: {r: {path: r.csv, max_lenght: 3, qqq: 1}}
        adapters: {a: {method: lora, rnk: 3, learning_rte: 1}}
        training: {epoch: 2}
        """) == [
        "line 2, bse: unknown key; did you mean 'base'?",
        "line 3, data.r.max_lenght: unknown key; did you mean 'max_length'?",
        "line 3, data.r.qqq: unknown key; there are: path, prompt, answer, system, variables, split, max_rows,"
        " max_length, train_on, max_dropped, drop_duplicates, preferences, held_out, held_out_path, held_out_split",
        "line 4, adapters.a.rnk: unknown key; did you mean 'rank'?",
        "line 4, adapters.a.learning_rte: unknown key; did you mean 'learning_rate'?",
        "line 5, training.epoch: unknown key; did you mean 'epochs'?",
    ]


def test_a_key_in_the_wrong_place_is_told_where_it_belongs():
    assert errors("""\
        base: tiny
        rank: 8
        data: {r: {path: r.csv, epochs: 3}}
        adapters: {a: {method: lora, eval_every: 3, path: x}}
        training: {rank: 3, log: []}
        """) == [
        "line 2, rank: does not belong here, but to an adapter of the method lora",
        "line 3, data.r.epochs: does not belong here, but to an adapter or, for all of them, under training",
        "line 4, adapters.a.eval_every: does not belong here, but under training",
        "line 4, adapters.a.path: does not belong here, but to a data set",
        "line 5, training.rank: does not belong here, but to an adapter of the method lora",
        "line 5, training.log: does not belong here, but at the top of the recipe",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank": "8"}, "rank: must be a whole number, is '8' (without quotes)"),
        ({"rank": 8.0}, "rank: must be a whole number, is 8.0"),
        ({"rank": True}, "rank: must be a whole number, is true"),
        ({"rank": None}, "rank: must be a whole number, is empty"),
        ({"rslora": "yes"}, "rslora: must be true or false, is 'yes'"),
        ({"alpha": -1}, "alpha: must be more than 0, is -1"),
        ({"dropout": 1}, "dropout: must be less than 1, is 1"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a finite number"),
        ({"min_learning_rate": 2}, "min_learning_rate: must be at most 1, is 2"),
        (
            {"schedule": "cosin"},
            "schedule: must be one of cosine, linear, constant, is 'cosin'; did you mean 'cosine'?",
        ),
        ({"schedule": 3}, "schedule: must be one of cosine, linear, constant, is 3"),
        ({"betas": [0.9]}, "betas: must be a list of 2 numbers, has 1 entry"),
        ({"betas": [0.9, 0.9, 0.9]}, "betas: must be a list of 2 numbers, has 3 entries"),
        ({"betas": [0.9, "x"]}, "betas, entry 2: must be a number, is 'x'"),
        ({"betas": 0.9}, "betas: must be a list of 2 numbers, is 0.9"),
        ({"targets": 5}, "targets: must be text or a list of texts, is 5 (put it in quotes)"),
        ({"targets": ["q", 5]}, "targets, entry 2: must be text, is 5 (put it in quotes)"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern.q: must be at least 1, is 0"),
        ({"rank_pattern": [1]}, "rank_pattern: must be a mapping of names to whole numbers, is a list"),
        ({"init": "pissa", "dropout": 0.1}, "init: pissa takes no dropout; set dropout: 0 or another init"),
        ({"data": []}, "data: must name a data set; there are: d"),
        ({"data": ["d", "d"]}, "data: names 'd' more than once"),
        ({"data": ["e"]}, "data: no data set 'e'; there are: d"),
        ({"method": "lorra"}, f"method: no method 'lorra'; there are: {METHODS}; did you mean 'lora'?"),
        ({"method": 3}, f"method: must be the name of a method ({METHODS}), is 3"),
        ({"under": {"x": 1}}, "under: must be text or a list of texts, is a mapping"),
    ],
)
def test_wrong_adapter_values(keys: dict[str, object], message: str):
    assert one_error(with_adapter(**keys)) == f"adapters.a.{message}"


def test_two_sizes_of_a_step():
    message = "adapters.a: give batch_rows or batch_tokens, not both"
    assert one_error(with_adapter(batch_rows=1, batch_tokens=2)) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": []}, "path: must not be empty"),
        ({"path": ""}, "path: must not be empty"),
        ({"path": 3}, "path: must be text or a list of texts, is 3 (put it in quotes)"),
        ({"prompt": "{t}"}, "prompt: needs an answer pattern beside it, such as answer: '{label}'"),
        ({"system": "s", "answer": "{a}"}, "system: needs a prompt and an answer pattern beside it"),
        ({"prompt": "{t", "answer": "{a}"}, "prompt: expected '}' before end of string (a brace itself is written twice: {{)"),
        ({"answer": "{}"}, "answer: a column name is missing between { and }"),
        ({"held_out": 1.5}, "held_out: must be a share below 1 (0.1) or a whole number of rows (50), is 1.5"),
        ({"held_out": -1}, "held_out: must be a share below 1 (0.1) or a whole number of rows (50), is -1"),
        ({"held_out": "all"}, "held_out: must be a number, is 'all'"),
        ({"held_out": 0.1, "held_out_path": "x.csv"}, "held_out_path: give it or held_out, not both"),
        ({"held_out": 0.1, "held_out_split": "test"}, "held_out_split: give it or held_out, not both"),
        ({"held_out_split": "train"}, "held_out_split: 'train' is learnt; name another split"),
        ({"split": "a", "held_out_split": "a"}, "held_out_split: 'a' is learnt; name another split"),
        ({"variables": {"n": 5}}, "variables.n: must be text, is 5 (put it in quotes)"),
        ({"train_on": ["user", "asistant"]}, "train_on, entry 2: must be one of system, user, assistant, is 'asistant'; did you mean 'assistant'?"),
        ({"max_length": 1}, "max_length: must be at least 2, is 1"),
        ({"max_dropped": 5}, "max_dropped: must be at most 1, is 5"),
    ],
)  # fmt: skip
def test_wrong_data_values(keys: dict[str, object], message: str):
    assert one_error(with_data(**keys)) == f"data.d.{message}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"log": "tensorboard"}, "log: must be a list of tensorboard, wandb, mlflow, is 'tensorboard'; write [tensorboard]"),
        ({"log": ["tensorbord"]}, "log, entry 1: must be one of tensorboard, wandb, mlflow, is 'tensorbord'; did you mean 'tensorboard'?"),
        ({"dtype": "fp16"}, "dtype: must be one of auto, float32, bfloat16, float16, float64, is 'fp16'; did you mean 'float16'?"),
        ({"base": 3}, "base: must be text, is 3 (put it in quotes)"),
        ({"name": "a/b"}, "name: must be fit for a folder: letters, digits, '_', '-', '+' and '.', the first no sign but '_', 60 at most"),
        ({"chat_template": "alpca"}, "chat_template: no chat template 'alpca'; there are: auto, tokenizer, plain, alpaca, chatml, or the path of a file (did you mean 'alpaca'?)"),
        ({"training": None}, "training: must be a mapping such as {epochs: 1}, is empty"),
        ({"training": {"micro_batch_tokens": 0}}, "training.micro_batch_tokens: must be at least 1, is 0"),
        ({"data": {"d": "x.csv"}}, "data.d: must be a mapping such as {path: reviews.csv}, is 'x.csv'"),
        ({"adapters": {"a": 3}}, "adapters.a: must be a mapping such as {method: lora, rank: 8}, is 3"),
        ({"adapters": {"a": {}}}, f"adapters.a.method: this key is missing; there are: {METHODS}"),
        ({"adapters": []}, "adapters: must be a mapping with a name for each, such as {lora-8: {method: lora, rank: 8}}, is a list"),
    ],
)  # fmt: skip
def test_wrong_values_elsewhere(keys: dict[str, object], message: str):
    assert one_error({**with_data(), **keys}) == message


def test_missing_keys():
    assert errors("name: x") == [
        "line 1, base: this key is missing; for example base: tiny",
        "line 1, data: this key is missing; for example data: {reviews: {path: reviews.csv}}",
        "line 1, adapters: this key is missing; for example adapters: {lora-8: {method: lora, rank: 8}}",
    ]
    assert errors("base: tiny\ndata: {r: {}}\nadapters: {}") == [
        "line 2, data.r.path: this key is missing; for example path: reviews.csv",
        "line 3, adapters: must hold at least one, such as {lora-8: {method: lora, rank: 8}}",
    ]


def test_with_several_data_sets_each_adapter_names_its_own():
    values = with_adapter() | {"data": {"d": {"path": "d.csv"}, "e": {"path": "e.csv"}}}
    assert one_error(values) == "adapters.a.data: must name a data set; there are: d, e"
    values["adapters"] = {"a": {"method": "lora", "data": ["e", "d"]}}
    assert recipe_from_dict(values).adapters["a"].data == ("e", "d")


def test_names_that_stand_twice():
    assert errors("""\
        base: tiny
        data: {r: {path: r.csv}}
        adapters:
          one: {method: lora}
          two: {method: lora, rank: 4, rank: 8}
          one: {method: lora}
          Two: {method: lora}
        """) == [
        "line 5, adapters.two.rank: stands twice; the first is in line 5",
        "line 6, adapters.one: stands twice; the first is in line 4",
        "line 7, adapters.Two: differs from 'two' in upper and lower case only; use another name",
    ]


@pytest.mark.parametrize("name", ["a b", "a/b", ".a", "", "..", "a.", "con", "nul.txt", "x" * 61, "a\\b", "-a"])
def test_names_unfit_for_folders(name: str):
    message = one_error(with_adapter() | {"adapters": {name: {"method": "lora"}}})
    assert "the name must be fit for a folder" in message


@pytest.mark.parametrize("name", ["a", "8", "lora-8", "1e-4", "v1.2", "情感", "a_b+c", "x" * 60])
def test_names_fit_for_folders(name: str):
    recipe = parse_recipe(f"base: tiny\ndata: {{r: {{path: r.csv}}}}\nadapters: {{{name}: {{method: lora}}}}")
    assert list(recipe.adapters) == [name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, the file is empty"),
        ("# nothing\n\n", "line 1, the file is empty"),
        ("- base", "line 1, a recipe must be a mapping (base: tiny …), is a list"),
        ("base", "line 1, a recipe must be a mapping (base: tiny …), is 'base'"),
        ("a: [1\nb: 2", "line 2, column 2: broken YAML: while parsing a flow sequence: expected ',' or ']', but got ':'"),
        ("a: 1\nb:\n\tc: 2", "line 3, column 1: broken YAML: while scanning for the next token: found character '\\t' that cannot start any token"),
        ("a: 'x", "line 1, column 6: broken YAML: while scanning a quoted scalar: found unexpected end of stream"),
        ("a: 1\nb: \x00", "line 2, broken YAML: a character that is not allowed in it"),
        ("a: 1\n---\nb: 2", "line 2, column 1: broken YAML: expected a single document in the stream: but found another document"),
    ],
)  # fmt: skip
def test_broken_files(text: str, message: str):
    assert errors(text) == [message]


def test_tags_aliases_and_odd_keys():
    messages = errors(GOOD + "name: !!python/object x\n")
    assert messages == ["line 12, name: the tag !!python/object is not allowed here"]
    assert "an alias (*) stands inside what it repeats" in errors("base: &x [*x]")[-1]
    assert "line 12, a key must be a single word, not a list or mapping" in errors(GOOD + "? [a]\n: b\n")
    assert "'maybe' is not a value of the kind bool" in errors(GOOD + "device: !!bool maybe\n")[0]


def test_anchors_and_merging():
    recipe = parse_recipe("""
base: tiny
data: {r: {path: r.csv}}
adapters:
  a: &a {method: lora, rank: 4, epochs: 3}
  b: {<<: *a, rank: 16}
""")
    assert recipe.adapters["b"].method == LoRA(rank=16)
    assert recipe.adapters["b"].training.epochs == 3


def test_how_much_is_held_out():
    def part(**keys: object) -> float | int:
        return recipe_from_dict(with_data(**keys)).data["d"].held_out_part

    assert (part(), part(held_out=0.25), part(held_out=0)) == (0.1, 0.25, 0)
    assert isinstance(part(held_out=50), int)
    assert part(held_out_path="e.csv") == 0


# --- with a folder ----------------------------------------------------------------------------------------


def write(folder: Path, text: str = GOOD) -> Path:
    (folder / "reviews.csv").write_text("text,label\na,b\n")
    path = folder / "my run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path)
    assert recipe.data["reviews"].path == (str(tmp_path / "reviews.csv"),)
    assert recipe.name == "my-run"
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert load_recipe("../my run.yaml") == recipe


def test_paths_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "here.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path / "cwd")
    write(tmp_path)
    messages = errors(
        """\
        base: ./tiny
        chat_template: mine.yaml
        data:
          a: {path: review.csv}
          b: {path: [data/x, reviews.csv, owner/name], held_out_path: here.csv}
        adapters: {a: {method: lora, data: a, under: saved/x}}
        """,
        folder=tmp_path,
    )
    assert [message.partition(" (")[0] for message in messages] == [
        "line 1, base: no base './tiny': there is no such folder, and no embedded base of that name",
        f"line 2, chat_template: {tmp_path}/mine.yaml: there is no such file",
        f"line 4, data.a.path: {tmp_path}/review.csv: there is no such file or folder",
        f"line 5, data.b.path: {tmp_path}/data/x: there is no such file or folder",
        f"line 5, data.b.held_out_path: {tmp_path}/here.csv: there is no such file or folder",
        f"line 6, adapters.a.under: {tmp_path}/saved/x is no folder of a saved adapter",
    ]
    assert "reviews.csv" in messages[2]


def test_hub_names_stay_as_they_are(tmp_path: Path):
    recipe = recipe_from_dict(with_data(path="owner/name") | {"base": "Qwen/Qwen3-0.6B"}, folder=tmp_path)
    assert (recipe.base, recipe.data["d"].path) == ("Qwen/Qwen3-0.6B", ("owner/name",))


def test_files_that_cannot_be_read(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean .*my run.yaml"):
        load_recipe(tmp_path / "myrun.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"base: tiny\nname: caf\xe9\n")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


# --- without a recipe -------------------------------------------------------------------------------------


def test_recipe_for_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for_data_files(
        "reviews.csv", epochs=2, rank=16, held_out=5, micro_batch_tokens=100, dtype="float32", max_steps=None
    )
    assert isinstance(recipe, Recipe)
    assert (recipe.base, recipe.name, list(recipe.adapters)) == ("tiny", "reviews", ["reviews"])
    assert recipe.adapters["reviews"].method == LoRA(rank=16)
    assert recipe.adapters["reviews"].training == AdapterTraining(epochs=2, learning_rate=2e-3)  # as always on tiny
    assert recipe.data["reviews"].held_out == 5
    assert recipe.training.micro_batch_tokens == 100
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_recipe_for_data_files_that_are_wrong(tmp_path: Path):
    with pytest.raises(UserError, match=r"nope\.json: there is no such file"):
        recipe_for_data_files(tmp_path / "nope.json")
    with pytest.raises(UserError, match="no data file"):
        recipe_for_data_files([])
    write(tmp_path)
    with pytest.raises(RecipeError, match="has 2 errors") as caught:
        recipe_for_data_files(tmp_path / "reviews.csv", rnak=3, epochs=-1)
    assert "adapters.reviews.rnak: unknown key; did you mean 'rank'?" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [("data/a b.jsonl.gz", "a-b"), ("owner/name", "name"), ("x.v2.csv", "x.v2"), ("...", "run"), ("é中.json", "é中")],
)
def test_names_made_from_files(file: str, name: str):
    from graftlm.recipe.locate import name_from

    assert name_from(file) == name


def test_a_head_and_its_labels():
    recipe = recipe_from_dict(with_adapter(head={"type": "classifier", "labels": ["yes", "no"]}))
    assert recipe.adapters["a"].head == HeadSettings(type="classifier", labels=("yes", "no"))
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert recipe_from_dict(with_adapter()).adapters["a"].head is None


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"type": "clasifier"},
            "adapters.a.head.type: must be one of classifier, tagger, verbalizer, reward, is 'clasifier'; did you mean 'classifier'?",
        ),
        ({"type": "tagger", "label": ["a"]}, "adapters.a.head.label: unknown key; did you mean 'labels'?"),
        (
            {"type": "verbalizer", "pattern": "{mask} {mask}"},
            "adapters.a.head: pattern: must hold {mask} once, such as '{text} It was {mask}.'",
        ),
        (
            {"type": "verbalizer", "pattern": "{mask} {text}"},
            "adapters.a.head: pattern: {mask} must come after {text}: a row that is too long is cut at its end",
        ),
        (
            {"type": "tagger", "pattern": "{mask}"},
            "adapters.a.head: pattern and words belong to a verbalizer, not to a tagger",
        ),
        ({"type": "tagger", "labels": ["a", "a"]}, "adapters.a.head: labels: names 'a' more than once"),
        ("tagger", "adapters.a.head: must be a mapping, is 'tagger'"),
    ],
)
def test_a_head_that_is_wrong(head, message):
    assert one_error(with_adapter(head=head)) == message

"""Any recipe survives being written and read; any text gives a recipe or one clear error."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.errors import UserError
from graftlm.recipe import Recipe, commented_recipe, parse_recipe, recipe_from_dict

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = st.sampled_from(
    ["1e-4", "no", "null", "~", "8", "0x1", "2024-01-01", "- a", "a: b", "#", "'", '"', "*a", "<<", "\n"]
)
TEXT = WORDS | ODD
PLAIN = TEXT.filter(lambda text: not {"{", "}"} & set(text))
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_.+-]{0,8}[a-z0-9]", fullmatch=True).map(lambda name: "n" + name)
COUNT = st.integers(1, 10**12)
SHARE = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(0, 1e30, exclude_min=True)


LORA = {"method": "lora"}


def keys(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values)


DATA = st.tuples(
    st.fixed_dictionaries({"path": TEXT | st.lists(TEXT, min_size=1, max_size=3)}),
    keys(
        variables=st.dictionaries(TEXT, TEXT, max_size=2),
        split=TEXT,
        max_rows=COUNT,
        max_length=st.integers(2, 10**6),
        train_on=st.sampled_from(["last", "all", ["user"], ["user", "assistant"]]),
        max_dropped=SHARE,
        drop_duplicates=st.booleans(),
    ),
    st.just({})
    | keys(held_out=SHARE | COUNT)
    | keys(held_out_path=TEXT | st.lists(TEXT, max_size=2), held_out_split=TEXT.map("of {}".format)),
    st.just({}) | st.fixed_dictionaries({"prompt": PLAIN, "answer": PLAIN}) | st.fixed_dictionaries({"answer": PLAIN}),
).map(lambda parts: {key: value for part in parts for key, value in part.items()})
SETTINGS = st.tuples(
    keys(
        learning_rate=POSITIVE,
        schedule=st.sampled_from(["linear", "constant"]),
        warmup=st.floats(0, 1e9),
        betas=st.tuples(SHARE, SHARE).map(list),
        epochs=POSITIVE,
        max_steps=st.none() | COUNT,
        seed=st.integers(0, 2**70),
    ),
    st.sampled_from([{}, {"batch_rows": 3}, {"batch_tokens": 3000}, {"batch_rows": None}]),
).map(lambda parts: parts[0] | parts[1])
METHOD = keys(
    rank=COUNT,
    alpha=st.none() | POSITIVE,
    rslora=st.booleans(),
    targets=TEXT | st.lists(TEXT, max_size=2),
    rank_pattern=st.dictionaries(TEXT, COUNT, max_size=2),
)
RUN = keys(micro_batch_tokens=COUNT, eval_every=st.none() | COUNT, gradient_checkpointing=st.booleans())


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    data = draw(st.dictionaries(TEXT, DATA, min_size=1, max_size=3))
    chosen = st.fixed_dictionaries({"data": st.lists(st.sampled_from(list(data)), min_size=1, unique=True)})
    adapters = draw(st.dictionaries(NAMES, st.tuples(METHOD, SETTINGS, chosen), min_size=1, max_size=3))
    top = draw(keys(blocks=TEXT, device=TEXT, log=st.lists(st.sampled_from(["wandb", "mlflow"]), max_size=2)))
    return recipe_from_dict(
        {
            **top,
            "base": draw(TEXT),
            "name": draw(NAMES),
            "data": data,
            "adapters": {n: {"method": "lora", **m, **s, **d} for n, (m, s, d) in adapters.items()},
            "training": draw(SETTINGS) | draw(RUN),
        }
    )


def test_a_name_with_a_line_separator_comes_back_as_it_was():
    for name in ("\x85", "a\x85b", "\u2028", "\n", " \t", "\ufeff"):
        recipe = recipe_from_dict({"base": "b", "name": "n", "data": {name: {"path": "p"}}, "adapters": {"a": LORA}})
        assert parse_recipe(recipe.to_yaml()) == recipe


@settings(max_examples=100, deadline=None)
@given(recipes())
def test_reading_what_was_written_gives_the_same_recipe(recipe: Recipe):
    text = recipe.to_yaml()
    again = parse_recipe(text)
    assert again == recipe
    assert again.to_yaml() == text


FULL = commented_recipe()
LINES = [line for line in FULL.splitlines() if line.strip() and "#" not in line]
JUNK = st.sampled_from(
    [
        "",
        "[",
        "{",
        "}",
        ":",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!bool x",
        "?",
        "|",
        "\t",
        "%",
        "'",
        "\x07",
        "~",
        "-1",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_recipe_never_ends_in_a_stack_trace(data: st.DataObject):
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        place = data.draw(st.integers(0, len(lines[at])))
        lines[at] = lines[at][:place] + data.draw(JUNK | TEXT) + data.draw(st.sampled_from([lines[at][place:], ""]))
    read("\n".join(lines))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_error_in_plain_words(text: str):
    read(text)


def test_very_deep_nesting_is_an_error():
    read("[" * 5000)


def read(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_recipe(text)

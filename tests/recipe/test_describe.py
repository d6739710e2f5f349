from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from graftlm.adapters import method as method_module
from graftlm.adapters.method import Adapter, MethodConfig
from graftlm.base.loading import DTYPES
from graftlm.cli.recipe import recipe as command
from graftlm.errors import UserError
from graftlm.recipe import commented_recipe, json_schema, parse_recipe, recipe_from_dict
from graftlm.recipe.problems import properties
from graftlm.recipe.schema import AdapterKeys, DataSet, RunKeys, check_names, known_methods
from graftlm.training.settings import AdapterTraining, RunSettings
from scripts.make_recipe_reference import PAGE, page

GROUPS = [RunKeys, DataSet, AdapterKeys, AdapterTraining, RunSettings, *known_methods().values()]


def test_commented_recipe_parses_to_the_defaults():
    recipe = parse_recipe(commented_recipe())
    assert recipe.training == RunSettings()
    assert recipe.data["reviews"] == DataSet(path=("reviews.csv",))
    for name, adapter in recipe.adapters.items():
        assert adapter.training == AdapterTraining()
        assert adapter.method == known_methods()[name]()


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_is_described_everywhere(group: Any):
    text, schema = commented_recipe(), json.dumps(json_schema())
    words = " ".join(line.strip().lstrip("# ") for line in text.splitlines())
    for key, keyed in properties(group).items():
        assert f" {key}:" in text or f"\n{key}:" in text
        assert f'"{key}":' in schema
        if key != "method":
            assert keyed["description"].endswith(".")
            assert keyed["description"] in words


def test_json_schema_is_closed_and_needs_little():
    schema = json_schema()
    assert schema["required"] == ["base", "data", "adapters"]
    assert schema["additionalProperties"] is False
    adapters = schema["properties"]["adapters"]["additionalProperties"]["oneOf"]
    adapter = next(each for each in adapters if each["properties"]["method"]["const"] == "lora")
    assert adapter["properties"]["rank"]["minimum"] == 1
    assert adapter["required"] == ["method"]
    assert "$ref" not in json.dumps(schema)


def test_dtypes_are_those_that_a_base_can_be_loaded_in():
    assert set(get_args(RunKeys.model_fields["dtype"].annotation)) == {"auto", *DTYPES}


def test_the_reference_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python scripts/make_recipe_reference.py"


# --- methods that are registered later --------------------------------------------------------------------


class Other(MethodConfig):
    """A method of a test."""

    method: Literal["other"] = "other"
    length: int = Field(ge=1, description="How long.")

    def build(self, places: Any, *, seed: int, dtype: Any, device: Any) -> Adapter:
        raise NotImplementedError


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(method_module._METHODS, "other", Other)


@pytest.mark.usefixtures("other")
def test_a_new_method_needs_no_edit():
    values = {"base": "tiny", "data": {"d": {"path": "d.csv"}}}
    recipe = recipe_from_dict({**values, "adapters": {"a": {"method": "other", "length": 3, "epochs": 2}}})
    assert recipe.adapters["a"].method == Other(length=3)
    assert recipe.adapters["a"].training.epochs == 2
    assert parse_recipe(recipe.to_yaml()) == recipe
    with pytest.raises(UserError) as caught:
        recipe_from_dict(
            {**values, "adapters": {"a": {"method": "other", "rank": 3}, "b": {"method": "x", "lenght": 1}}}
        )
    lines = caught.value.message.splitlines()
    assert lines[1:] == [
        "  adapters.a.rank: does not belong here, but to an adapter of the method lora",
        "  adapters.a.length: this key is missing",
        f"  adapters.b.method: no method 'x'; there are: {', '.join(known_methods())}",
        "  adapters.b.lenght: unknown key; did you mean 'length'?",
    ]
    assert "# length:" in commented_recipe()
    assert len(json_schema()["properties"]["adapters"]["additionalProperties"]["oneOf"]) == len(known_methods())


def test_settings_of_one_name_are_refused():
    class Clashing(Other):
        epochs: int = 1

    with pytest.raises(TypeError, match="AdapterTraining and Clashing both have the setting epochs"):
        check_names(Clashing)


# --- the command ------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path):
    app = typer.Typer()
    app.command()(command)
    run = CliRunner().invoke
    printed = run(app, [])
    assert printed.exit_code == 0
    assert printed.stdout == commented_recipe()
    assert json.loads(run(app, ["--schema"]).stdout) == json_schema()
    file = tmp_path / "recipe.yaml"
    assert run(app, ["--out", str(file)]).exit_code == 0
    assert file.read_text(encoding="utf-8") == commented_recipe()
    file.write_text("mine")
    refused = run(app, ["--out", str(file)])
    assert isinstance(refused.exception, UserError)
    assert file.read_text() == "mine"
    assert run(app, ["--out", str(file), "--force", "--schema"]).exit_code == 0
    assert json.loads(file.read_text(encoding="utf-8")) == json_schema()
    nowhere = run(app, ["--out", str(tmp_path / "no" / "recipe.yaml")])
    assert isinstance(nowhere.exception, UserError)


def test_importing_the_schema_needs_no_torch():
    code = "import sys, graftlm.recipe, graftlm.cli.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

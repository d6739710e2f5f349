"""Adapter folders: what comes back, and what happens to those that are broken or for another base."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.files import is_adapter_folder, read_notes
from graftlm.errors import UserError
from tests.families import VOCABULARY, family_config, make_base, randomise, relative
from tests.methods import METHODS

CONFIG, WEIGHTS, NOTES = "adapter_config.json", "adapter_model.safetensors", "graftlm.json"
IDS = torch.arange(3, 19).view(2, 8)


@pytest.fixture
def model(llama: AdaptedModel) -> AdaptedModel:
    randomise(llama.add("a", LoRA(rank=4, alpha=6)))
    return llama


@pytest.fixture
def saved(model: AdaptedModel, tmp_path: Path) -> Path:
    """The folder of the adapter ``a``."""
    return model.save("a", tmp_path / "a")


def logits(model: AdaptedModel, adapter: str) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS, adapters=adapter).logits
    return result


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- round trips ------------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {},
    {"rslora": True, "dropout": 0.2, "alpha": 3.5},
    {"init": "pissa", "alpha": 7},
    {"init": "pissa", "rslora": True, "rank_pattern": {"*.0.*": 2}, "alpha_pattern": {"*.1.*": 5}},
    {"targets": ["all-linear", "lm_head"], "rank_pattern": {"lm_head": 7}},
    {"targets": "lm_head", "init": "pissa"},
    {"init": "gaussian", "exclude": ["*.0.*"]},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "falcon"])
def test_round_trip(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family))
    adapter = randomise(model.add("a", LoRA(rank=4, **settings)))
    model.notes["a"] = {"template": {"name": "plain"}, "template_hash": "0f", "größe": 1}
    before = logits(model, "a")
    folder = model.save("a", tmp_path / "out" / "a")
    assert set(content(folder)) == {CONFIG, WEIGHTS, NOTES}

    fresh = AdaptedModel(make_base(family))
    assert fresh.load(folder) == "a"
    loaded = fresh.adapters["a"]
    assert relative(logits(fresh, "a"), before) < 1e-6
    assert loaded.config == adapter.config
    assert fresh.notes["a"] == model.notes["a"]
    for (key, ours), (other, theirs) in zip(adapter.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(ours, theirs), "the very same bits"
    for path, update in adapter.linear.items():
        assert loaded.linear[path].scale == pytest.approx(update.scale, rel=1e-12)
        assert loaded.linear[path].dropout == update.dropout
    assert [p.requires_grad for p in loaded.parameters()] == [True] * len(list(adapter.parameters()))


def test_training_goes_on_after_a_round_trip(tmp_path: Path) -> None:
    """One more step from the loaded adapter is the step that the saved one takes, with its start still subtracted."""

    def step(model: AdaptedModel) -> torch.Tensor:
        optimizer = torch.optim.SGD(model.adapters["a"].parameters(), lr=0.1)
        model(IDS, adapters="a").logits.square().mean().backward()
        optimizer.step()
        return logits(model, "a")

    model = AdaptedModel(make_base("llama"))
    randomise(model.add("a", LoRA(rank=4, init="pissa")), std=0.05)
    model.save("a", tmp_path / "a")
    fresh = AdaptedModel(make_base("llama"))
    fresh.load(tmp_path / "a")
    before = logits(model, "a")
    after = step(model)
    assert relative(after, before) > 1e-5
    assert relative(step(fresh), after) < 1e-6


def test_what_the_notes_say(model: AdaptedModel, saved: Path) -> None:
    notes = read_notes(saved)
    assert notes["name"] == "a"
    assert notes["format"] == 1
    assert notes["method"] == {**LoRA(rank=4, alpha=6).model_dump(mode="json")}
    assert notes["base"] == {
        "name": "random-llama",
        "source": "random-llama",
        "fingerprint": model.fingerprint,
        "family": "llama",
        "hidden_size": 32,
        "layers": 2,
        "vocabulary": VOCABULARY,
    }


def test_a_float64_adapter_keeps_its_bits(make_model: Callable[..., AdaptedModel], tmp_path: Path) -> None:
    model = make_model("llama", dtype=torch.float64)
    adapter = randomise(model.add("a", LoRA()))
    model.save("a", tmp_path / "a")
    model.load(tmp_path / "a", "b")
    for ours, theirs in zip(adapter.parameters(), model.adapters["b"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_bfloat16_base_takes_the_adapter_of_its_float32_self(saved: Path, model: AdaptedModel) -> None:
    narrow = AdaptedModel(make_base("llama").to(torch.bfloat16))
    assert narrow.fingerprint == model.fingerprint
    narrow.load(saved)
    assert relative(logits(narrow, "a"), logits(model, "a")) < 0.05


def test_the_name_is_the_folders_or_the_one_that_is_given(model: AdaptedModel, saved: Path) -> None:
    assert model.load(saved, "b") == "b"
    with pytest.raises(UserError, match="already an adapter 'a'"):
        model.load(saved)
    other = saved.rename(saved.with_name("renamed"))
    assert model.load(other) == "renamed"
    assert set(model.adapters) == {"a", "b", "renamed"}


def test_saving_again_replaces(model: AdaptedModel, saved: Path) -> None:
    (saved / "README.md").write_text("as peft writes it")
    randomise(model.adapters["a"], seed=9)
    model.save("a", saved)
    assert set(content(saved)) == {CONFIG, WEIGHTS, NOTES}
    model.load(saved, "b")
    torch.testing.assert_close(logits(model, "b"), logits(model, "a"))


def test_saving_never_removes_other_things(model: AdaptedModel, saved: Path) -> None:
    for folder in (saved.parent, saved):
        (folder / "thesis.txt").write_text("three years of work")
        before = content(saved)
        with pytest.raises(UserError, match=r"holds other things(.|\n)*thesis\.txt"):
            model.save("a", folder)
        assert (folder / "thesis.txt").read_text() == "three years of work"
        assert content(saved) == before


def test_an_unknown_adapter_is_not_saved(model: AdaptedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown adapter 'b'; there are: a"):
        model.save("b", tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- folders that are cut short or strange -----------------------------------------------------------------------


def refused(folder: Path, message: str) -> str:
    model = AdaptedModel(make_base("llama"))
    with pytest.raises(UserError, match=message) as raised:
        model.load(folder, "x")
    assert not model.adapters
    assert not model.notes
    return str(raised.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, NOTES])
def test_a_file_cut_short(saved: Path, file: str, share: float) -> None:
    path = saved / file
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = refused(saved, "cut short or broken")
    assert str(path) in message
    assert "Copy the adapter folder again" in message


@pytest.mark.parametrize(("file", "message"), [(CONFIG, "not an adapter folder"), (WEIGHTS, f"has no {WEIGHTS}")])
def test_a_missing_file(saved: Path, file: str, message: str) -> None:
    (saved / file).unlink()
    assert str(saved) in refused(saved, message)


def test_without_our_notes_it_is_one_of_pefts(saved: Path, model: AdaptedModel) -> None:
    (saved / NOTES).unlink()
    fresh = AdaptedModel(make_base("llama"))
    fresh.load(saved)
    assert relative(logits(fresh, "a"), logits(model, "a")) < 1e-6


def test_pickles_are_never_opened(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    torch.save({}, saved / "adapter_model.bin")
    assert "Save it again with safetensors" in refused(saved, "pickled adapter_model.bin, which is never opened")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"LORA"'])
@pytest.mark.parametrize("file", [CONFIG, NOTES])
def test_json_that_is_no_object(saved: Path, file: str, text: str) -> None:
    (saved / file).write_text(text)
    refused(saved, "should hold a JSON object")


def test_bytes_that_are_no_text(saved: Path) -> None:
    (saved / CONFIG).write_bytes(b"\xff\xfe\x00")
    refused(saved, "cut short or broken")


def edit(path: Path, **values: Any) -> None:
    parsed = json.loads(path.read_text())
    path.write_text(json.dumps(parsed | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (CONFIG, {"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        (CONFIG, {"peft_type": None}, "peft_type is None"),
        (NOTES, {"format": 2}, r"format 2; this graftlm reads format 1(.|\n)*Update graftlm"),
        (NOTES, {"method": {"method": "lorra"}}, "unknown method 'lorra'; there are: .*lora"),
        (NOTES, {"method": {"method": "lora", "rank": -1}}, "method: "),
        (NOTES, {"method": "lora"}, "method"),
        (NOTES, {"base": {}}, "base"),
    ],
)
def test_values_that_mean_nothing(saved: Path, file: str, values: dict[str, Any], message: str) -> None:
    edit(saved / file, **values)
    refused(saved, message)


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", "four"), ("r", None), ("r", 0), ("lora_alpha", "x"), ("lora_alpha", 0), ("alpha_pattern", {"(": 3})],
)
def test_a_peft_config_with_strange_values(saved: Path, key: str, value: Any) -> None:
    (saved / NOTES).unlink()
    edit(saved / CONFIG, **{key: value})
    assert key in refused(saved, CONFIG)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"


@pytest.mark.parametrize("letter", ["A", "B"])
def test_half_a_pair(saved: Path, letter: str) -> None:
    change(saved, lambda tensors: tensors.pop(KEY.format(letter)))
    refused(saved, f"up_proj.lora_{letter}.weight is missing")


def test_strange_tensors(saved: Path) -> None:
    original = (saved / WEIGHTS).read_bytes()
    for change_one, message in [
        (lambda t: t.update({"something": torch.zeros(1)}), "key 'something' is not of a LoRA"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t.update({KEY.format("A"): torch.zeros(4, 31)}), r"at model\.\S+\.up_proj the base is 48 × 32"),
        (lambda t: t.update({KEY.format("B"): torch.zeros(48, 3)}), "does not fit this base"),
        (lambda t: t.update({KEY.format("B"): torch.zeros(48)}), "does not fit this base"),
        (
            lambda t: t.update({KEY.format(n).replace("up", "side"): torch.zeros(4, 4) for n in "AB"}),
            r"changes model\.layers\.0\.mlp\.side_proj, which this base does not have",
        ),
    ]:  # fmt: skip
        (saved / WEIGHTS).write_bytes(original)
        change(saved, change_one)
        refused(saved, message)


def test_no_folder_or_another_one(saved: Path) -> None:
    assert str(saved) in refused(saved.parent / "b", "there is no adapter folder"), "it names those nearby"
    assert str(saved) in refused(saved.parent, "not an adapter folder")
    refused(saved / CONFIG, "there is no adapter folder")
    assert is_adapter_folder(saved)
    assert not is_adapter_folder(saved.parent)


def test_another_base_is_refused_with_fingerprints_and_shapes(saved: Path, model: AdaptedModel) -> None:
    other = AdaptedModel(make_base("llama", seed=1), name="other")
    with pytest.raises(UserError) as raised:
        other.load(saved)
    message = str(raised.value)
    assert all(part in message for part in (model.fingerprint[:16], other.fingerprint[:16], "random-llama", "other"))
    assert "shapes are equal, the weights are not" in message

    gpt2 = AdaptedModel(make_base("gpt2"))
    with pytest.raises(UserError, match="family llama against gpt2") as raised:
        gpt2.load(saved)
    assert gpt2.fingerprint[:16] in str(raised.value)
    assert not gpt2.adapters


def test_a_peft_folder_for_other_shapes(saved: Path) -> None:
    (saved / NOTES).unlink()
    with pytest.raises(UserError, match="which this base does not have"):
        AdaptedModel(make_base("gpt2")).load(saved, "x")
    config = family_config("llama")
    config.intermediate_size = 40
    with pytest.raises(UserError, match=r"at model\.layers\.0\.mlp\.\w+_proj the base is (40 × 32|32 × 40)"):
        AdaptedModel(LlamaForCausalLM(config)).load(saved, "x")


# --- a full disk (for kills see base/test_files.py) ------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_folder(
    model: AdaptedModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(saved)
    randomise(model.adapters["a"], seed=5)

    def full(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("graftlm.adapters.files.save_file", full)
    with pytest.raises(UserError, match=r"the disk is full: .*MB free(.|\n)*Earlier results are intact"):
        model.save("a", saved)
    assert content(saved) == before
    assert os.listdir(saved.parent) == ["a"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = (
        os.name == "posix" and shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    )
    if not mounted:
        pytest.skip("cannot mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk: Path, model: AdaptedModel) -> None:
    randomise(model.add("small", LoRA(rank=1)))
    randomise(model.add("large", LoRA(rank=16, rank_pattern={"*.mlp.*": 32}, targets="*.mlp.*")))
    folder = small_disk / "a"
    model.save("small", folder)
    before = content(folder)
    (small_disk / "filler").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 40_000))
    with pytest.raises(UserError, match="the disk is full"):
        model.save("large", folder)
    assert content(folder) == before
    assert sorted(os.listdir(small_disk)) == ["a", "filler"]


@pytest.mark.parametrize("name", ["seq_bn", "bitfit", "full", "prompt", "prefix", "ia3", "adalora", "lora"])
def test_a_file_without_any_tensor(name: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base("gpt2"))
    model.add("a", METHODS[name])
    folder = model.save("a", tmp_path / "a")
    save_file({}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is missing|holds no tensors"):
        model.load(folder, "b")
    assert list(model.adapters) == ["a"]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "dylora", "ia3"])
def test_a_file_that_lost_a_whole_layer(name: str, ours: bool, tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", METHODS[name])
    folder = model.save("a", tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "1.mlp.down_proj" not in k}, folder / "adapter_model.safetensors")
    if not ours:
        (folder / "graftlm.json").unlink()
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.(lora_A|ia3_l)\S* is missing"):
        model.load(folder, "b")
    assert list(model.adapters) == ["a"]

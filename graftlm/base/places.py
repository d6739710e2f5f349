"""Find the places of a transformer where adapters attach, by its structure and the order in which it runs.

No family is named here. Blocks are the layers that transformers can checkpoint, or the longest list of equal
modules. One probe of a few tokens notes which modules *execute*, in which order, and what they are given:
registration order is wrong in some families (Phi-3 among them).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from graftlm.base.attentions import AttentionPlace, find_attentions
from graftlm.base.probe import Call, probe
from graftlm.base.products import foreign_forward
from graftlm.errors import UserError

SublayerKind = Literal["attention", "cross_attention", "feed_forward"]


@dataclass(frozen=True)
class ModulePlace:
    """A module with parameters of its own that is called with one tensor, tokens first.

    ``index`` is its place in execution order over the whole model; ``block`` the number of the block it is in.
    ``source``: it sees the encoder's tokens, in an encoder-decoder. ``heads_first``: its input is (rows, heads,
    length, width), and not (rows, length, …) or (tokens, width).
    """

    path: str
    module: nn.Module
    index: int
    block: int | None
    source: bool
    heads_first: bool


@dataclass(frozen=True)
class LinearPlace(ModulePlace):
    """A linear layer; ``index`` counts linear layers alone, the head last.

    ``plain``: it is a product with its weight, plus its bias, and nothing else.
    """

    in_features: int
    out_features: int
    plain: bool

    def dense_weight(self) -> torch.Tensor | None:
        """The weight as (out, in), or None where there is no plain one (a quantised or sharded layer)."""
        return _weight(self.module) if self.plain else None


@dataclass(frozen=True)
class Sublayer:
    """Attention or feed-forward of one block.

    ``linears``: its linear layers that are called, by path, in the order of execution. ``output``: the module that
    gives h, which is added to the residual stream x: the last linear layer, or a norm right behind it (Gemma).
    ``norm_before``: the norm whose input is x, or None where x is what the first linear layer is given (post-norm).
    ``norm_after``: the norm of x + h (post-norm), or None. ``width``: of h and x.
    """

    kind: SublayerKind
    block: int
    linears: tuple[str, ...]
    output: str
    norm_before: str | None
    norm_after: str | None
    width: int
    source: bool

    @property
    def key(self) -> str:
        """Its name: "3.feed_forward"."""
        return f"{self.block}.{self.kind}"


@dataclass(frozen=True)
class EmbeddingPlace:
    """The input embedding: every module that looks up its weight. ``vocabulary`` is how many rows that has."""

    paths: tuple[str, ...]
    vocabulary: int
    width: int


@dataclass(frozen=True)
class Places:
    """Every place of a base.

    ``linears`` is keyed by module path, in the order of execution, the head last. ``leaves`` are all modules with
    parameters of their own that ran, the linear layers among them. ``head`` is the language head's path, or None;
    ``embedding`` is None where transformers does not know it.
    """

    model: PreTrainedModel
    blocks: tuple[str, ...]
    linears: dict[str, LinearPlace]
    leaves: dict[str, ModulePlace]
    sublayers: tuple[Sublayer, ...]
    embedding: EmbeddingPlace | None
    head: str | None

    @cached_property
    def attentions(self) -> tuple[AttentionPlace, ...]:
        """The attention modules, found on first use; none where the family computes attention by itself."""
        return find_attentions(self.model, self.blocks)


def find_places(model: PreTrainedModel, *, blocks: str | None = None) -> Places:
    """Find the blocks, linear layers, sublayers and embedding of a language model of any kind.

    ``blocks`` is a shell pattern over module paths (``model.layers.*``) for a family whose blocks are not found.

    Raises:
        UserError: no blocks, no linear layers in them, or expert layers with three-dimensional weights.
    """
    block_modules = _named_blocks(model, blocks) if blocks else _find_blocks(model)
    _refuse_experts(model, block_modules)
    head = _head_path(model)
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
    calls = probe(model)
    order = [*dict.fromkeys(call.path for call in calls if call.path in in_block)]
    order += [path for path in in_block if path not in order]
    source = {call.path: call.source for call in calls}
    linears: dict[str, LinearPlace] = {}
    for path in order:
        number, module = in_block[path]
        linears[path] = _linear_place(path, module, len(linears), number, source.get(path, False))
    if head is not None and is_linear(model.get_submodule(head)):
        linears[head] = _linear_place(head, model.get_submodule(head), len(linears), None, False)
    paths, embedding = tuple(block_modules), _embedding(model)
    return Places(
        model,
        paths,
        linears,
        _leaves(calls, linears, paths, embedding.paths if embedding else ()),
        tuple(_sublayers(model, linears, paths, calls)),
        embedding,
        head,
    )


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


def _head_path(model: PreTrainedModel) -> str | None:
    """The language head, or None (an encoder without one)."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next((str(path) for path, module in model.named_modules() if module is head), None)


def _linear_place(path: str, module: nn.Module, index: int, block: int | None, source: bool) -> LinearPlace:
    if isinstance(module, Conv1D):
        fan_in, fan_out = module.nx, module.nf
    else:
        assert isinstance(module, nn.Linear)
        fan_in, fan_out = module.in_features, module.out_features
    plain = _is_plain(module, int(fan_in))
    return LinearPlace(path, module, index, block, source, False, int(fan_in), int(fan_out), plain)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def _is_plain(module: nn.Module, fan_in: int) -> bool:
    """Whether the layer is x Wᵀ + b. Subclasses may be (Falcon's) or not (quantised ones): they are asked."""
    weight = getattr(module, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or foreign_forward(module) is not None:
        return False
    if type(module) in (nn.Linear, Conv1D):
        return True
    if weight.shape != (module.out_features, fan_in):
        return False
    x = torch.linspace(-1, 1, 2 * fan_in, device=weight.device).view(2, fan_in).to(weight.dtype)
    expected = nn.functional.linear(x, weight, getattr(module, "bias", None))
    room = 16 * torch.finfo(weight.dtype).eps * float(expected.abs().max())
    return bool(((module(x) - expected).abs() <= room).all())


def _leaves(
    calls: list[Call], linears: dict[str, LinearPlace], blocks: tuple[str, ...], embedded: tuple[str, ...]
) -> dict[str, ModulePlace]:
    found: dict[str, ModulePlace] = {}
    for call in calls:
        own = any(True for _ in call.module.parameters(recurse=False))
        # Positions that a family looks up in a way of its own (OPT, BART) come as no ids.
        unlike = isinstance(call.module, nn.Embedding) and type(call.module) is not nn.Embedding
        if call.path in found or not call.by_token or not own or (unlike and call.path not in embedded):
            continue
        block = next((number for number, path in enumerate(blocks) if call.path.startswith(path + ".")), None)
        place = ModulePlace(call.path, call.module, len(linears) + len(found), block, call.source, call.heads_first)
        found[call.path] = linears.get(call.path, place)
    return found


def _embedding(model: PreTrainedModel) -> EmbeddingPlace | None:
    try:
        weight: Any = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return None
    paths = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and module.weight is weight
    ]
    return EmbeddingPlace(tuple(paths), int(weight.shape[0]), int(weight.shape[1]))


def _sublayers(
    model: nn.Module, linears: dict[str, LinearPlace], blocks: tuple[str, ...], calls: list[Call]
) -> Iterator[Sublayer]:
    """Linear layers under a module whose class is called …Attention… are attention; the others feed-forward."""
    groups: dict[tuple[int, str], list[LinearPlace]] = {}
    for path, place in linears.items():
        if place.block is not None:
            owner = _attention_owner(model, blocks[place.block], path)
            groups.setdefault((place.block, owner), []).append(place)
    ran = {call.path for call in calls}
    found = []
    for (block, owner), members in groups.items():
        places = [place for place in members if place.path in ran]  # Mamba has one whose weight alone is used
        if not places:
            continue
        paths = tuple(place.path for place in places)
        if not owner:
            kind: SublayerKind = "feed_forward"
        else:
            kind = "cross_attention" if len({place.source for place in places}) == 2 else "attention"
        flow = _flow(calls, paths)
        width, source = places[-1].out_features, places[-1].source
        found.append(Sublayer(kind, block, paths, flow.output, flow.norm_before, flow.norm_after, width, source))
    order = ("attention", "cross_attention", "feed_forward")
    return iter(sorted(found, key=lambda sublayer: (sublayer.block, order.index(sublayer.kind))))


def _attention_owner(model: nn.Module, block: str, path: str) -> str:
    """The outermost attention module that a linear layer of a block is in; empty where there is none."""
    parts = path[len(block) + 1 :].split(".")[:-1]
    parents = [".".join([block, *parts[: n + 1]]) for n in range(len(parts))]
    owners = (parent for parent in parents if "attention" in type(model.get_submodule(parent)).__name__.lower())
    return next(owners, "")


@dataclass(frozen=True)
class _Flow:
    output: str
    norm_before: str | None
    norm_after: str | None


def _flow(calls: list[Call], linears: tuple[str, ...]) -> _Flow:
    """What stands before and behind a sublayer: told by which tensors are handed on, and by what is added to what."""
    paths = [call.path for call in calls]
    begin, end = paths.index(linears[0]), paths.index(linears[-1])
    first, last = calls[begin], calls[end]
    before = next((call for call in calls[:begin] if _is_norm(call, first.x) and _same(call.y, first.x)), None)
    behind = [call for call in calls[end + 1 :] if _is_norm(call, last.y)]
    if behind and _same(behind[0].x, last.y):  # a norm of the output alone, before it is added (Gemma)
        last, behind = behind[0], behind[1:]
    if behind and behind[0].x.numel() == last.y.numel() == first.x.numel() and _is_sum(behind[0].x, last.y, first.x):
        return _Flow(last.path, None, behind[0].path)
    return _Flow(last.path, before.path if before else None, None)


def _is_norm(call: Call, like: torch.Tensor) -> bool:
    """Whether a call is of a norm over vectors as wide as ``like``'s."""
    weights = list(call.module.parameters(recurse=False))
    named = "norm" in type(call.module).__name__.lower()
    one_dimensional = bool(weights) and all(weight.dim() == 1 for weight in weights)
    return (named or one_dimensional) and call.x.shape == call.y.shape and call.y.shape[-1] == like.shape[-1]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _is_sum(total: torch.Tensor, h: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether total = h + x, number by number, up to the rounding of the model's own precision."""
    room = 4 * torch.finfo(total.dtype).eps
    total, h, x = (each.flatten().cpu().double() for each in (total, h, x))
    return bool(((total - h - x).abs() <= room * (h.abs() + x.abs())).all())

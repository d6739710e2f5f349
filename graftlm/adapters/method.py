"""What every tuning method gives: a configuration, and the adapter that it builds out of parts for places."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from torch import nn

from graftlm.adapters.stored import Stored, fill, own_tensors
from graftlm.base.places import Places
from graftlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MethodConfig(BaseModel):
    """The settings of one method. A method announces itself with :func:`register_method`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str

    def describe(self) -> str:
        """One line on what kind of adapter it is: the method, and the settings that are not its defaults."""
        fields: dict[str, FieldInfo] = type(self).__pydantic_fields__
        changed = [
            f"{name.replace('_', ' ')} {_said(getattr(self, name))}"
            for name, field in fields.items()
            if name != "method" and getattr(self, name) != field.get_default(call_default_factory=True)
        ]
        return ", ".join([self.method, *changed])

    @abstractmethod
    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """A new adapter with freshly initialised parameters, drawn from ``seed`` alone.

        Raises:
            UserError: the base lacks the method's place, or a setting does not fit the base.
        """

    @property
    def own_template(self) -> str | None:
        """A template of this adapter's own, in the place of the run's chat template."""
        return None

    def bind(self, tokenizer: PreTrainedTokenizerBase | None) -> MethodConfig:
        """The settings with what a tokenizer tells filled in (a start from text, say)."""
        return self

    def check_steps(self, total: int) -> None:
        """See that ``total`` optimizer steps are enough for the method.

        Raises:
            UserError: they are not.
        """

    def view(self, adapter: Adapter, suffix: str) -> Adapter:
        """Another form of an adapter that shares its parameters: ``name@suffix``, such as a DyLoRA at one rank.

        Raises:
            UserError: the method has none, or not this one.
        """
        raise UserError(f"an adapter of the method {self.method} has no form '@{suffix}'")

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """What is written to a folder, but for the head. By default the parameters as they are, for graftlm alone."""
        tensors = own_tensors(adapter)
        return Stored({key: tensor.detach() for key, tensor in tensors.items() if not key.startswith("head.")}, None)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """The adapter that :meth:`store` wrote.

        Raises:
            UserError: a tensor is missing, too much, or of another shape.
        """
        dtype = torch.float32
        for tensor in stored.tensors.values():
            dtype = torch.promote_types(tensor.dtype, dtype)
        adapter = self.build(places, seed=0, dtype=dtype, device=device)
        fill(adapter, stored.tensors, stored.folder)
        return adapter


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class LowRank(nn.Module):
    """An update of one linear layer: y += scale · (x Aᵀ) Bᵀ, with A (rank, in) and B (out, rank).

    ``start_A`` and ``start_B``, where present, are subtracted: y += scale · (x Aᵀ Bᵀ − x A₀ᵀ B₀ᵀ), so that the
    update is nothing at first although BA is not (PiSSA).
    """

    start_A: torch.Tensor | None
    start_B: torch.Tensor | None

    def __init__(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        *,
        scale: float,
        dropout: float,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(B)
        self.scale = scale
        self.dropout = dropout
        self.register_buffer("start_A", start[0] if start else None)
        self.register_buffer("start_B", start[1] if start else None)

    @property
    def rank(self) -> int:
        """The rank of the trained product."""
        return self.lora_A.shape[0]

    def plain_factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A and B where they are the whole update, quickly; else None."""
        A, B = self._parameters["lora_A"], self._parameters["lora_B"]
        if A is None or B is None or type(self) is not LowRank or self._buffers["start_A"] is not None:
            return None
        return A, B

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of the whole update; r is twice the rank where a start is subtracted."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """The update as a dense (out, in) matrix."""
        A, B = self.factors()
        return self.scale * (B @ A)


class Change(nn.Module):
    """An update of one module that is no plain low-rank product.

    ``forward(x, y)`` gives what is added to the base's output y, from the module's input x, for its own tokens:
    x (tokens, …), y (tokens, …) → (tokens, …) like y. All updates are of the base's own output, so that those of a
    stack add up in any order. Subclasses that also change the input override :meth:`prepare`.
    """

    #: Whether :meth:`prepare` does anything, and whether :meth:`forward` does.
    prepares = False
    adds = True
    #: Share of the inputs that is dropped out while training; :meth:`with_dropout` then takes forward's place.
    dropout: float = 0.0

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The input that the module gets instead of x; every update of a stack sees it."""
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def with_dropout(self, x: torch.Tensor, kept: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Like ``forward``; ``kept`` is x with a share set to 0 and the rest scaled up."""
        raise NotImplementedError

    def merge_into(self, module: nn.Module) -> None:
        """Write the update into the weights of a module, which is a copy of the base's (without gradients)."""
        raise NotImplementedError


class SublayerChange(nn.Module):
    """An update of an attention or feed-forward sublayer.

    ``forward(h, x, norm)`` gives what is added to the sublayer's output h, for its own tokens: h and x
    (tokens, width), x the residual stream; ``norm`` is the norm of x + h in a post-norm model, else None.
    """

    #: Whether it adds to the residual stream behind the sublayer and its norm instead: h and x are then that stream.
    on_stream = False

    def forward(
        self, h: torch.Tensor, x: torch.Tensor, norm: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> torch.Tensor:
        raise NotImplementedError


class VirtualTokens(nn.Module):
    """Trained input vectors. ``length``: how many; ``forward()`` gives them, (length, width)."""

    length: int

    def forward(self) -> torch.Tensor:
        raise NotImplementedError


class KeyValues(nn.Module):
    """Trained keys and values that attention finds before those of a row's own tokens.

    ``length``: how many; ``paths``: the attention modules; ``shift``: by how much the row's positions shift;
    ``windowed``: in layers with a sliding window they leave it like tokens before the row, as in peft, instead of
    staying visible. ``forward()`` gives them by path, each (key/value heads, length, width of a head).
    """

    length: int
    paths: tuple[str, ...]
    shift: int
    windowed: bool

    def forward(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        raise NotImplementedError


class Head(nn.Module):
    """A head of an adapter's own: final hidden states (tokens, hidden) → (tokens, outputs)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


Update = LowRank | Change


class Adapter(nn.Module):
    """A named set of trained parameters: what it does at which places.

    ``linear``: at modules, by path; ``sublayers``: by :attr:`Sublayer.key`; ``virtual``: its tokens at the input
    embedding; ``prefix``: keys and values in attention; ``head``: on the final hidden state.
    """

    def __init__(
        self,
        config: MethodConfig,
        linear: Mapping[str, Update] | None = None,
        *,
        sublayers: Mapping[str, SublayerChange] | None = None,
        virtual: VirtualTokens | None = None,
        prefix: KeyValues | None = None,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.linear: dict[str, Update] = dict(linear or {})
        self.sublayers: dict[str, SublayerChange] = dict(sublayers or {})
        for parts in (self.linear, self.sublayers):
            for key, part in parts.items():
                self.add_module(key.replace(".", "/"), part)
        self.virtual = virtual
        self.prefix = prefix
        self.head = head
        #: The file that tells what it was trained on, or where it lies; it travels with the adapter, unread.
        self.trained_on: bytes | Path | None = None

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def prefix_length(self) -> int:
        """By how much the positions of its rows shift."""
        return 0 if self.prefix is None else self.prefix.shift

    def key_values(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values by path of the attention module, each (key/value heads, length, width of a head).

        Made once a call, before the blocks run: what is made inside a recomputed block would be made twice.
        """
        return {} if self.prefix is None else self.prefix()

    @property
    def ranks(self) -> Mapping[str, int] | None:
        """The rank of each matrix by path, where the method chooses it; None where it does not."""
        return None

    @property
    def forms(self) -> Sequence[str]:
        """Suffixes of views (``name@suffix``) that are scored beside the adapter after training."""
        return ()

    # What follows are the points at which a method may take part in training; most have no need to.

    def learning_rate_scale(self, parameter: str) -> float:
        """The learning rate of a parameter, by its name, as a multiple of the adapter's."""
        return 1.0

    def training_view(self, seed: int, step: int) -> str | None:
        """The suffix of the view that is trained at an optimizer step (from 0), or None for the adapter itself."""
        return None

    def penalty(self) -> torch.Tensor | None:
        """A scalar that is added to the loss once an optimizer step."""
        return None

    def stepped(self, step: int, total: int) -> bool:
        """Called after optimizer step ``step`` (from 1) of ``total``, its gradients still there.

        True where parameters got another shape: the optimizer is then made anew with :meth:`kept_moments`.
        """
        return False

    @property
    def settled(self) -> bool:
        """Whether training may stop early for want of gain: not while a method still takes parts away."""
        return True

    def kept_moments(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """What is left of an optimizer moment of a parameter, by name, after its shape changed."""
        return moment

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what ``state_dict`` gave, of another shape too where a method changes shapes in training."""
        self.load_state_dict({name: tensors[name] for name in own_tensors(self)}, strict=False)  # tied ones once


_METHODS: dict[str, type[MethodConfig]] = {}
ConfigClass = TypeVar("ConfigClass", bound=type[MethodConfig])


def register_method(config: ConfigClass) -> ConfigClass:
    """Class decorator: make a method known to recipes and adapter files by its ``method`` name."""
    fields: dict[str, FieldInfo] = config.__pydantic_fields__
    _METHODS[fields["method"].default] = config
    return config


def methods() -> Mapping[str, type[MethodConfig]]:
    """Every known method by name."""
    return dict(_METHODS)

"""P-tuning: virtual tokens anywhere in a template, made by a small encoder that is dropped after training.

Liu et al. 2021, "GPT Understands, Too", section 3: h = MLP(LSTM(e)) in the place of free vectors, e (n, width)
trained, so that the vectors depend on each other. Encoder: LSTM(d, h, 2 layers, bidirectional) → Linear(2h, 2h) →
ReLU → Linear(2h, d); or an MLP d → h → h → d; or none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.method import Adapter, MethodConfig, VirtualTokens, register_method
from graftlm.adapters.prompt import embedded, embedding_for, repeated
from graftlm.adapters.prompt_files import KEY, Vectors, restore_vectors, store_vectors
from graftlm.adapters.stored import Stored, register_peft_kind
from graftlm.adapters.virtual import MOST_VIRTUAL_TOKENS
from graftlm.base.loading import base_kind
from graftlm.base.places import Places
from graftlm.base.products import Linear
from graftlm.errors import UserError
from graftlm.template_text import Part, count_virtual, is_behind, is_in_front, parse_template

DEFAULT_LENGTH = 20


@register_method
class PTuning(MethodConfig):
    """P-tuning: virtual tokens anywhere in a template, made by an encoder that is dropped after training."""

    method: Literal["p-tuning"] = "p-tuning"
    length: Annotated[int, Field(ge=1, le=MOST_VIRTUAL_TOKENS)] | None = Field(
        None, description="How many virtual tokens stand before the input, where there is no template. Left out: 20."
    )
    template: str | None = Field(
        None,
        description="Where they stand, in the place of the run's chat template: '[P×3] {input} [P×2] is {target}' "
        "has three before the input and two behind it.",
    )
    encoder: Literal["lstm", "mlp", "none"] = Field(
        "lstm", description="What makes the vectors while training: lstm, mlp, or none (free vectors)."
    )
    encoder_hidden: int = Field(256, ge=1, description="Hidden size of the encoder.")
    encoder_layers: int = Field(2, ge=1, description="Layers of the LSTM.")

    @model_validator(mode="after")
    def _one_placement(self) -> PTuning:
        if self.template is None:
            return self
        if self.length is not None:
            raise ValueError("length: the template says how many virtual tokens there are; leave one of them out")
        try:
            count = count_virtual(self.parts)
        except UserError as error:
            raise ValueError(error.message + (f". {error.hint}" if error.hint else "")) from None
        if count > MOST_VIRTUAL_TOKENS:
            raise ValueError(f"template: {count:,} virtual tokens; {MOST_VIRTUAL_TOKENS:,} are the most")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the template; none where the virtual tokens stand in front."""
        return () if self.template is None else parse_template(self.template)

    @property
    def tokens(self) -> int:
        """How many virtual tokens there are."""
        return count_virtual(self.parts) if self.parts else self.length or DEFAULT_LENGTH

    @property
    def own_template(self) -> str | None:
        """The template of this adapter's rows."""
        return self.template

    def describe(self) -> str:
        """One line for people."""
        where = f"in '{self.template}'" if self.template else "in front"
        encoder = "" if self.encoder == "none" else f", encoder {self.encoder} {self.encoder_hidden}"
        return f"P-tuning, {self.tokens} virtual tokens {where}{encoder}"

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Make the vectors' start and the encoder.

        Raises:
            UserError: the base has no input embedding, the virtual tokens fill its context, or some stand where
                nothing that is learnt reads them.
        """
        place = embedding_for(places, self.tokens)
        if self.parts and is_behind(self.parts) and base_kind(places.model.config) != "encoder":
            raise UserError(
                f"template '{self.template}': virtual tokens behind {{target}} are read by nothing that is learnt",
                hint="Put them before {target}; only encoders read what follows.",
            )
        generator = torch.Generator().manual_seed(seed)
        if self.encoder == "none":
            drawn = torch.randperm(place.vocabulary, generator=generator).tolist()
            start = embedded(places, place, repeated(drawn, self.tokens))
            return Adapter(self, virtual=Vectors(start.to(device, dtype)))
        start = torch.randn(self.tokens, place.width, generator=generator)
        # Drawn in float32 on the CPU, so that one seed gives one adapter whatever the device and precision.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = self._encoder(place.width)
        return Adapter(self, virtual=EncodedVectors(start, encoder).to(device, dtype))

    def _encoder(self, width: int) -> nn.Module:
        hidden = self.encoder_hidden
        if self.encoder == "lstm":
            return LSTMEncoder(width, hidden, self.encoder_layers)
        return nn.Sequential(Linear(width, hidden), nn.ReLU(), Linear(hidden, hidden), nn.ReLU(), Linear(hidden, width))

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """The vectors, without what made them; as peft writes it where they stand in front."""
        assert adapter.virtual is not None
        if self.parts and not is_in_front(self.parts):
            with torch.no_grad():
                vectors = adapter.virtual()
            reason = f"peft puts virtual tokens in front only, and '{self.template}' has them elsewhere"
            return Stored({KEY: vectors}, None, not_peft=reason)
        settings: dict[str, Any] = {
            "encoder_reparameterization_type": "LSTM" if self.encoder == "lstm" else "MLP",
            "encoder_hidden_size": self.encoder_hidden,
            "encoder_num_layers": self.encoder_layers,
        }
        return store_vectors("P_TUNING", adapter.virtual, places, source, settings)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """Plain vectors: the encoder is gone."""
        return Adapter(self, virtual=restore_vectors(stored, self.tokens, places, device=device))


@register_peft_kind("P_TUNING")
def read_p_tuning(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """An adapter that peft wrote."""
    vectors = restore_vectors(stored, None, places, device=device)
    return Adapter(PTuning(length=vectors.length, encoder="none"), virtual=vectors)


class LSTMEncoder(nn.Module):
    """Bidirectional LSTM, then Linear(2h, 2h) → ReLU → Linear(2h, d): (n, d) → (n, d)."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=layers, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(Linear(2 * hidden, 2 * hidden), nn.ReLU(), Linear(2 * hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mlp(self.lstm(x)[0])
        return y


class EncodedVectors(VirtualTokens):
    """Vectors that an encoder makes of trained ones, start (length, width) → (length, width), in every call.

    A row's first call alone has virtual tokens in it, so there is nothing to gain from keeping them; and what was
    kept would have to notice every step: the fused optimizer changes parameters without counting their versions.
    """

    def __init__(self, start: torch.Tensor, encoder: nn.Module) -> None:
        super().__init__()
        self.length = len(start)
        self.start = nn.Parameter(start)
        self.encoder = encoder

    def forward(self) -> torch.Tensor:
        """The vectors, (length, width)."""
        vectors: torch.Tensor = self.encoder(self.start)
        return vectors

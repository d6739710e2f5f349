"""AdaLoRA: low-rank updates that share a budget of ranks, which goes to the matrices where it matters.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning":

- equation 3: ΔW = P Λ Q; here B (A ⊙ E), with A (rank, in), E (rank, 1), B (out, rank), scaled by α / (initial rank);
- equation 4: a regulariser keeps P and Q near orthogonal;
- equations 8 to 10: an entry's importance is its sensitivity |w · ∂w|, smoothed, times its smoothed deviation; a
  triplet's is E's plus the means of its row of A and its column of B;
- equation 12 and algorithm 1: the budget falls cubically, and every ``delta_t`` steps E is set to zero outside it. What
  was set to zero may come back while the budget falls. Once it is final, the matrices shrink for good.

Numerics as in peft: 1e-5 is added to the initial rank, and the regulariser is the mean of the unsquared norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.lora import ALL_LINEAR, select_linears
from graftlm.adapters.method import Adapter, LowRank, MethodConfig, Update, register_method
from graftlm.adapters.routing import mix_seed
from graftlm.adapters.stored import Stored
from graftlm.base.places import LinearPlace, Places
from graftlm.errors import UserError

PARTS = ("lora_A", "lora_E", "lora_B")


@register_method
class AdaLoRA(MethodConfig):
    """Low-rank adaptation whose ranks go where they matter."""

    method: Literal["adalora"] = "adalora"
    init_rank: int = Field(12, ge=1, description="Rank of every matrix at first.")
    target_rank: int = Field(8, ge=1, description="Average rank of the matrices in the end.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The update is scaled by alpha / init_rank. Left out: twice init_rank."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the inputs of A dropped while training.")
    targets: str | list[str] = Field(
        ALL_LINEAR,
        description="Linear layers: all-linear, names such as q_proj, full paths, or patterns such as '*.mlp.*'.",
    )
    exclude: list[str] = Field([], description="Names, paths or patterns that are left out of the targets.")
    t_init: float = Field(
        0.1, ge=0, description="Steps before the budget falls: a share of the steps (below 1) or a number of steps."
    )
    t_final: float = Field(
        0.3, gt=0, description="Steps with the final budget: a share of the steps (below 1) or a number of steps."
    )
    delta_t: int = Field(10, ge=1, description="Steps from one allocation to the next.")
    beta1: float = Field(0.85, gt=0, lt=1, description="Smoothing of the sensitivity.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smoothing of its deviation.")
    orthogonal_weight: float = Field(0.5, ge=0, description="Weight of the regulariser that keeps A and B orthogonal.")

    @model_validator(mode="after")
    def _falls(self) -> AdaLoRA:
        if self.target_rank > self.init_rank:
            raise ValueError(f"target_rank {self.target_rank} is above init_rank {self.init_rank}")
        return self

    def describe(self) -> str:
        """One line for people."""
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        return f"AdaLoRA rank {self.init_rank} falling to {self.target_rank} on average, {targets}"

    @property
    def scale(self) -> float:
        """The factor of the update; it stays when ranks fall."""
        alpha = 2.0 * self.init_rank if self.alpha is None else self.alpha
        return alpha / (self.init_rank + 1e-5)

    def schedule(self, total: int) -> tuple[int, int]:
        """The last step (from 1) before the budget falls, and the step at which it is final."""
        begin = round(self.t_init * total) if self.t_init < 1 else int(self.t_init)
        rest = round(self.t_final * total) if self.t_final < 1 else int(self.t_final)
        return begin, total - rest

    def check_steps(self, total: int) -> None:
        """See that the budget is final before the training ends.

        Raises:
            UserError: it is not.
        """
        begin, end = self.schedule(total)
        if not begin < end < total:
            raise UserError(
                f"adalora: with {total} steps the budget would fall from step {begin} to step {end}, and it has to be "
                "final before the training ends",
                hint="Train for more steps, or give smaller t_init and t_final.",
            )

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Triplets of the initial rank for every target.

        Raises:
            UserError: a target matches nothing, or the rank exceeds what the matrix can have.
        """
        targets = select_linears(places, self.targets, self.exclude)
        updates: dict[str, Update] = {
            path: self._triplets(place, mix_seed(seed, path), dtype, device) for path, place in targets.items()
        }
        return AdaLoRAAdapter(self, updates)

    def _triplets(self, place: LinearPlace, seed: int, dtype: torch.dtype, device: torch.device) -> Triplets:
        limit = min(place.in_features, place.out_features)
        if self.init_rank > limit:
            raise UserError(
                f"init_rank {self.init_rank} is larger than {place.path} allows: "
                f"its matrix is {place.out_features} × {place.in_features}",
                hint=f"Use at most {limit}, or leave the layer out with exclude: [{place.path}].",
            )
        generator = torch.Generator().manual_seed(seed)
        A = torch.empty(self.init_rank, place.in_features).normal_(std=0.02, generator=generator)
        B = torch.empty(place.out_features, self.init_rank).normal_(std=0.02, generator=generator)
        E = torch.zeros(self.init_rank, 1)
        kept = torch.ones(self.init_rank, dtype=torch.bool, device=device)
        A, E, B = (part.to(device, dtype) for part in (A, E, B))
        return Triplets(A, E, B, scale=self.scale, dropout=self.dropout, kept=kept)

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """As peft writes it."""
        from graftlm.adapters.adalora_files import store_adalora

        return store_adalora(adapter, places, source)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """As peft reads it, with our own settings."""
        from graftlm.adapters.adalora_files import restore_adalora

        return restore_adalora(self, stored, places, device=device)


class Triplets(LowRank):
    """y += scale · (x (A ⊙ E)ᵀ) Bᵀ. ``kept`` (initial rank,) says which of the initial triplets are left."""

    kept: torch.Tensor

    def __init__(
        self, A: torch.Tensor, E: torch.Tensor, B: torch.Tensor, *, scale: float, dropout: float, kept: torch.Tensor
    ) -> None:
        super().__init__(A, B, scale=scale, dropout=dropout)
        self.lora_E = nn.Parameter(E)
        self.register_buffer("kept", kept)
        for name in PARTS:  # what the importance is made of, while the budget falls
            like = self.get_parameter(name)
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(like, requires_grad=False))
            self.register_buffer(f"deviation_{name}", torch.zeros_like(like, requires_grad=False))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A ⊙ E (rank, in) and B (out, rank)."""
        return self.lora_A * self.lora_E, self.lora_B

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Take a step's gradients into the smoothed sensitivities and deviations."""
        for name in PARTS:
            parameter = self.get_parameter(name)
            sensitivity, deviation = self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"deviation_{name}")
            # A layer that did not run has no gradient: it matters to nothing.
            now = torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).abs()
            sensitivity.mul_(beta1).add_(now, alpha=1 - beta1)
            deviation.mul_(beta2).add_((now - sensitivity).abs(), alpha=1 - beta2)

    def importance(self) -> torch.Tensor:
        """Of each triplet, (rank,)."""
        A, E, B = (self.get_buffer(f"sensitivity_{name}") * self.get_buffer(f"deviation_{name}") for name in PARTS)
        return E.squeeze(1) + A.mean(dim=1) + B.mean(dim=0)

    @torch.no_grad()
    def shrink(self, chosen: torch.Tensor) -> None:
        """Keep the triplets that are ``chosen`` (rank,) alone, and let go of what importance was made of."""
        self._replace({"lora_A": self.lora_A[chosen], "lora_E": self.lora_E[chosen], "lora_B": self.lora_B[:, chosen]})
        self.kept = chosen
        for name in PARTS:
            for kind in ("sensitivity", "deviation"):
                setattr(self, f"{kind}_{name}", self.get_buffer(f"{kind}_{name}").new_zeros(0))

    @torch.no_grad()
    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what another one's ``state_dict`` gave, whatever its rank.

        Raises:
            ValueError: it is of another matrix, or began at another rank.
        """
        device = self.lora_A.device
        rank = int(tensors["kept"].sum())
        wanted = {
            "lora_A": (rank, self.lora_A.shape[1]),
            "lora_E": (rank, 1),
            "lora_B": (self.lora_B.shape[0], rank),
            "kept": tuple(self.kept.shape),
        }
        for name, shape in wanted.items():
            if tensors[name].shape != shape:
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}, and {shape} is needed")
        self._replace({name: tensors[name].to(device) for name in PARTS})
        for name in self.state_dict():
            if name not in PARTS:
                setattr(self, name, tensors[name].to(device))

    def _replace(self, parts: Mapping[str, torch.Tensor]) -> None:
        for name, value in parts.items():
            setattr(self, name, nn.Parameter(value.clone().contiguous()))


class AdaLoRAAdapter(Adapter):
    """Shares its budget out while it is trained."""

    @property
    def triplets(self) -> dict[str, Triplets]:
        """By path."""
        return cast(dict[str, Triplets], self.linear)

    @property
    def final(self) -> bool:
        """Whether the matrices have their final ranks."""
        return all(update.get_buffer("sensitivity_lora_A").numel() == 0 for update in self.triplets.values())

    @property
    def settled(self) -> bool:
        """Not while ranks fall: an adapter that stopped then would be over its budget."""
        return self.final

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each matrix now, by path."""
        return {path: update.lora_A.shape[0] for path, update in self.triplets.items()}

    def penalty(self) -> torch.Tensor | None:
        """The weight times the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖ over all matrices."""
        config = cast(AdaLoRA, self.config)
        if config.orthogonal_weight == 0:
            return None
        grams = [
            gram
            for update in self.triplets.values()
            if update.lora_A.shape[0]
            for gram in (update.lora_A @ update.lora_A.T, update.lora_B.T @ update.lora_B)
        ]
        norms = [torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]
        return config.orthogonal_weight * torch.stack(norms).mean() if norms else None

    def stepped(self, step: int, total: int) -> bool:
        """Observe the step's gradients, share the budget out where it is due, and shrink where it is final."""
        config = cast(AdaLoRA, self.config)
        begin, end = config.schedule(total)
        if step > end or self.final:
            return False
        if step < end:
            for update in self.triplets.values():
                update.observe(config.beta1, config.beta2)
        if step == end or (step > begin and step % config.delta_t == 0):
            chosen = self._choose(self.budget(step, total))
            with torch.no_grad():
                for path, update in self.triplets.items():
                    update.lora_E.masked_fill_(~chosen[path][:, None], 0.0)
            if step == end:
                for path, update in self.triplets.items():
                    update.shrink(chosen[path])
        return step == end

    def budget(self, step: int, total: int) -> int:
        """How many triplets there are to be in all after a step (from 1)."""
        config = cast(AdaLoRA, self.config)
        begin, end = config.schedule(total)
        first, last = (rank * len(self.triplets) for rank in (config.init_rank, config.target_rank))
        if step <= begin:
            return first
        left = max(0.0, 1 - (step - begin) / (end - begin))
        return int((first - last) * left**3 + last)

    def _choose(self, budget: int) -> dict[str, torch.Tensor]:
        """The most important triplets of all matrices together, as masks (rank,) by path."""
        importance = {path: update.importance() for path, update in self.triplets.items()}
        every = torch.cat(list(importance.values()))
        left_out = len(every) - budget
        if left_out <= 0:
            return {path: torch.ones_like(values, dtype=torch.bool) for path, values in importance.items()}
        limit = every.kthvalue(left_out).values
        return {path: values > limit for path, values in importance.items()}

    def kept_moments(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """The moments of the triplets that are left."""
        module, _, part = name.rpartition(".")
        if part not in PARTS:  # of a head
            return moment
        kept = cast(Triplets, self.get_submodule(module)).kept
        return (moment[:, kept] if part == "lora_B" else moment[kept]).contiguous()

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what ``state_dict`` gave, of other ranks too."""
        for path, update in self.triplets.items():
            prefix = path.replace(".", "/") + "."
            update.adopt({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
        if self.head is not None:
            self.head.load_state_dict({key: tensors[f"head.{key}"] for key in self.head.state_dict()})

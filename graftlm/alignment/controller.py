"""How much a policy pays for a nat of divergence from its reference: a number, or one that is steered to a target.

A controller is a value: ``updated`` gives the next one. Its state is plain JSON, so that a resumed run goes on with the
same bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from graftlm.errors import UserError, unknown_name
from graftlm.objectives.checks import check_not_negative, check_positive


class KLController(Protocol):
    """What the coefficient of the penalty is now, and what it becomes."""

    @property
    def coefficient(self) -> float:
        """Of the penalty in the reward."""
        ...

    def updated(self, kl: float) -> KLController:
        """After a step whose answers had ``kl`` nats on average, an answer."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything, as JSON; :func:`controller_from_state` brings it back."""
        ...


@dataclass(frozen=True)
class FixedKL:
    """The same coefficient always."""

    coefficient: float = 0.05

    def __post_init__(self) -> None:
        check_not_negative(coefficient=self.coefficient)

    def updated(self, kl: float) -> FixedKL:
        """Itself."""
        _check(kl)
        return self

    def state(self) -> dict[str, Any]:
        """See :class:`KLController`."""
        return {"kind": "fixed", **asdict(self)}


@dataclass(frozen=True)
class AdaptiveKL:
    """β ← β (1 + gain × clip((KL − target) / target, ±bound)) (Ziegler et al. 2019, section 2.2).

    There ``gain`` (K_β) is 0.1 and the bound 0.2: a step changes the coefficient by 2% at most. ``target`` is in nats
    an answer, the sum over its tokens.
    """

    target: float
    coefficient: float = 0.05
    gain: float = 0.1
    bound: float = 0.2

    def __post_init__(self) -> None:
        check_positive(target=self.target, coefficient=self.coefficient, gain=self.gain, bound=self.bound)
        if self.gain * self.bound >= 1:
            raise UserError(
                f"gain {self.gain:g} × bound {self.bound:g} is 1 or more: one step could make the coefficient 0",
                hint="Ziegler et al. take 0.1 and 0.2.",
            )

    def updated(self, kl: float) -> AdaptiveKL:
        """Dearer where the divergence is above the target, cheaper below."""
        _check(kl)
        error = min(max((kl - self.target) / self.target, -self.bound), self.bound)
        return replace(self, coefficient=self.coefficient * (1 + self.gain * error))

    def state(self) -> dict[str, Any]:
        """See :class:`KLController`."""
        return {"kind": "adaptive", **asdict(self)}


def controller_from_state(state: dict[str, Any]) -> KLController:
    """The controller whose ``state`` this is.

    Raises:
        UserError: it is of no kind that exists, or holds other keys.
    """
    kinds: dict[str, type[FixedKL] | type[AdaptiveKL]] = {"fixed": FixedKL, "adaptive": AdaptiveKL}
    values = dict(state)
    kind = str(values.pop("kind", None))
    if kind not in kinds:
        raise unknown_name("KL controller", kind, list(kinds))
    try:
        return kinds[kind](**values)
    except TypeError as error:
        raise UserError(f"the state of the KL controller does not fit: {error}") from error


def _check(kl: float) -> None:
    if not math.isfinite(kl):
        raise UserError(
            f"the divergence from the reference is {kl}: the KL controller has nothing to go by",
            hint="Look for answers whose log-probabilities are not finite.",
        )

"""The KL controllers: by hand, where they go, and that their state is all of them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.alignment import AdaptiveKL, FixedKL, KLController, controller_from_state
from graftlm.errors import UserError


def test_by_hand() -> None:
    """Errors 0.1, and 2 and −1, which are cut to 0.2 and −0.2; each times 0.1."""
    start = AdaptiveKL(target=6.0, coefficient=0.5)
    assert start.updated(6.0).coefficient == 0.5
    assert start.updated(6.6).coefficient == pytest.approx(0.5 * 1.01)
    assert start.updated(18.0).coefficient == pytest.approx(0.5 * 1.02)
    assert start.updated(0.0).coefficient == pytest.approx(0.5 * 0.98)
    assert start.coefficient == 0.5, "a value"
    assert FixedKL(0.3).updated(99.0) == FixedKL(0.3)


def test_steers_to_the_target() -> None:
    """A policy whose divergence is 1 / coefficient ends where that is the target."""
    controller = AdaptiveKL(target=4.0, coefficient=2.0)
    for _ in range(500):
        controller = controller.updated(1 / controller.coefficient)
    assert controller.coefficient == pytest.approx(0.25, rel=1e-3)


@given(kls=st.lists(st.floats(-5, 1e6), max_size=20), cut=st.integers(0, 20))
def test_resumed_is_not_stopped(kls: list[float], cut: int) -> None:
    """Bit for bit, through a file."""
    whole: KLController = AdaptiveKL(target=3.7, coefficient=0.123)
    resumed = whole
    for number, kl in enumerate(kls):
        whole, resumed = whole.updated(kl), resumed.updated(kl)
        if number == cut:
            resumed = controller_from_state(json.loads(json.dumps(resumed.state())))
    assert resumed == whole
    assert whole.coefficient > 0
    assert controller_from_state(FixedKL(0.0).state()) == FixedKL(0.0)


def test_errors() -> None:
    for controller in (FixedKL(), AdaptiveKL(target=1.0)):
        with pytest.raises(UserError, match="nothing to go by"):
            controller.updated(math.nan)
    with pytest.raises(UserError, match="target is 0"):
        AdaptiveKL(target=0.0)
    with pytest.raises(UserError, match="coefficient is -1"):
        FixedKL(-1.0)
    with pytest.raises(UserError, match="is 1 or more"):
        AdaptiveKL(target=1.0, gain=5.0)
    with pytest.raises(UserError, match="Did you mean 'adaptive'"):
        controller_from_state({"kind": "adaptiv"})
    with pytest.raises(UserError, match="does not fit"):
        controller_from_state({"kind": "fixed", "beta": 1.0})

"""What is known of an answer that a policy drew, token by token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampled:
    """Numbers of an answer's tokens, one each; all are constants to whoever learns from them.

    ``log_probs``: under the policy that drew it, ``advantages``: how much better than expected. Empty where there is
    no such role: ``reference``, the log-probabilities under the reference; ``values`` before each token and
    ``returns``, what the values should have been.

    ``temperature``: what the logits are divided by, in all of these and in the loss.
    """

    log_probs: tuple[float, ...]
    advantages: tuple[float, ...]
    reference: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    temperature: float = 1.0

"""What the demo's stories are worth: a reward for graftlm train, and a scorer for graftlm eval."""

from collections.abc import Mapping, Sequence

from graftlm.demo.criterion import fulfils, reward

__all__ = ["fulfilled", "reward"]


def fulfilled(answer: str, references: Sequence[str], row: Mapping[str, str]) -> float:
    """1 if the story does all that was wished, else 0."""
    return float(fulfils(row["instruction"], answer))

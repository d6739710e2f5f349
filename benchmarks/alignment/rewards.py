"""The true criterion as a reward that recipes can name."""

from graftlm.demo.criterion import reward

__all__ = ["reward"]

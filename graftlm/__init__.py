"""graftlm: one frozen base model, many adapters of any kind, trained in one batch and served in one batch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before torch is imported: idle OpenMP threads that spin make small products a hundred times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

if TYPE_CHECKING:
    from graftlm import alignment as alignment
    from graftlm import objectives as objectives
    from graftlm.adapters import (
        IA3,
        AdaLoRA,
        AdaptedModel,
        BitFit,
        Bottleneck,
        DyLoRA,
        Full,
        LoRA,
        Prefix,
        Prompt,
        PTuning,
        Routing,
    )
    from graftlm.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "IA3",
    "AdaLoRA",
    "AdaptedModel",
    "BitFit",
    "Bottleneck",
    "DyLoRA",
    "Full",
    "LoRA",
    "PTuning",
    "Prefix",
    "Prompt",
    "Routing",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import graftlm` and `graftlm --help` stay quick."""
    if name == "UserError":
        from graftlm.errors import UserError

        return UserError
    if name in ("alignment", "objectives"):
        from importlib import import_module

        return import_module(f"graftlm.{name}")
    if name in __all__:
        import graftlm.adapters

        return getattr(graftlm.adapters, name)
    raise AttributeError(f"module 'graftlm' has no attribute '{name}'")

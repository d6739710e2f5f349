"""One small configuration or more of every tuning method, for tests that run over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import graftlm
from graftlm.adapters.method import MethodConfig

METHODS: Mapping[str, MethodConfig] = {
    "lora": graftlm.LoRA(rank=3),
    "lora-dropout-free-rs": graftlm.LoRA(rank=2, rslora=True, alpha=3.0),
}

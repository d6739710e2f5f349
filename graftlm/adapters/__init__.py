"""Adapters: methods, routing, products of many adapters at once, and the adapted model."""

import graftlm.adapters.lora_files  # noqa: F401  (announces how peft's folders are read)
from graftlm.adapters.lora import LoRA
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing

__all__ = ["AdaptedModel", "LoRA", "Routing"]

"""Adapters: methods, routing, products of many adapters at once, and the adapted model."""

import graftlm.adapters.adalora_files
import graftlm.adapters.lora_files
import graftlm.adapters.prefix_files  # noqa: F401  (these three announce how peft's folders are read)
from graftlm.adapters.adalora import AdaLoRA
from graftlm.adapters.bitfit import BitFit
from graftlm.adapters.bottleneck import Bottleneck
from graftlm.adapters.dylora import DyLoRA
from graftlm.adapters.full import Full
from graftlm.adapters.ia3 import IA3
from graftlm.adapters.lora import LoRA
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.p_tuning import PTuning
from graftlm.adapters.prefix import Prefix
from graftlm.adapters.prompt import Prompt
from graftlm.adapters.routing import Routing

#: The configurations of all methods, in the order in which they are listed.
METHODS = (LoRA, AdaLoRA, DyLoRA, Bottleneck, IA3, BitFit, Full, Prefix, Prompt, PTuning)

__all__ = [
    "IA3",
    "METHODS",
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
]

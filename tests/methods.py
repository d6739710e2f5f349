"""One small configuration or more of every tuning method, for tests that run over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import graftlm
from graftlm.adapters.method import MethodConfig

METHODS: Mapping[str, MethodConfig] = {
    "lora": graftlm.LoRA(rank=3),
    "dora": graftlm.LoRA(rank=2, dora=True),
    "copies": graftlm.LoRA(rank=2, targets=["all-linear", "embed_tokens"], modules_to_save=["*[nN]orm*"]),
    "rslora": graftlm.LoRA(rank=2, rslora=True, alpha=3.0),
    "adalora": graftlm.AdaLoRA(init_rank=4, target_rank=2, delta_t=2),
    "dylora": graftlm.DyLoRA(rank=4, min_rank=2),
    "seq_bn": graftlm.Bottleneck(size=5),
    "double_seq_bn": graftlm.Bottleneck(kind="double_seq_bn", reduction_factor=8, layer_norm_after=True),
    "par_bn": graftlm.Bottleneck(kind="par_bn", sublayers=["attention", "feed_forward"], scaling="learned"),
    "stream_bn": graftlm.Bottleneck(placement="stream", sublayers=["attention", "feed_forward"], scaling="channel"),
    "ia3": graftlm.IA3(),
    "bitfit": graftlm.BitFit(),
    "full": graftlm.Full(),
    "prompt": graftlm.Prompt(length=3),
    "p-tuning-lstm": graftlm.PTuning(length=2, encoder_hidden=6),
    "p-tuning-mlp": graftlm.PTuning(length=4, encoder="mlp", encoder_hidden=9),
    "p-tuning-none": graftlm.PTuning(length=1, encoder="none"),
    "prefix": graftlm.Prefix(length=5, projection_size=6),
    "prefix-plain": graftlm.Prefix(length=2, projection=False, window="peft"),
}

"""What graftlm is measured against in ``generate.py``: transformers, peft, and the matrix products alone.

    python benchmarks/generate_peer.py CONTENDER '{"rows": 32, ...}'

Prints one JSON object. Every contender makes a few tokens first, outside the time that counts.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _measure import Meter, print_result
from generate_work import ADAPTERS, Asked, Sizes, asked, batches, check_lengths, wanted
from mixed_kinds import peft_model
from sft_vs_trl import RANK, build_model
from torch import Tensor, nn
from transformers import GenerationConfig

WARM = 2  # new tokens of the run before
# What generate_batch keeps room for is all memory unless told: these are enough for the work, whatever the machine.
PAGE, BATCH_TOKENS = 128, 512

Make = Callable[[Sequence[Asked]], list[int]]


def timed(make: Make, answers: list[Asked]) -> dict[str, Any]:
    """Run ``make`` shortly, then on all answers; the second run counts. ``make`` gives the length of each answer."""
    make([Asked(answer.prompt, WARM) for answer in answers])
    meter = Meter()
    meter.start()
    lengths = make(answers)
    meter.stop()
    check_lengths(answers, lengths, exact=False)
    return {"tokens": wanted(answers), "made": sum(lengths), **meter.result()}


def sampling(new: int, **more: Any) -> GenerationConfig:
    """Plain draws from the whole vocabulary; nothing ends an answer but its length."""
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new, pad_token_id=0, **more
    )


def padded(answers: Sequence[Asked]) -> dict[str, Tensor]:
    """Ids and mask, (answers, longest prompt), padded on the left."""
    longest = max(len(answer.prompt) for answer in answers)
    ids = torch.zeros(len(answers), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, answer in enumerate(answers):
        ids[place, longest - len(answer.prompt) :] = torch.tensor(answer.prompt)
        mask[place, longest - len(answer.prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def frozen(model: nn.Module) -> Any:
    return model.eval().requires_grad_(False)


def plain_model(sizes: Sizes) -> Any:
    model = frozen(build_model(sizes.seed))
    model.generation_config = GenerationConfig(pad_token_id=0)  # the model's own has a token that ends answers
    return model


# ---- transformers ----


def generate(scenario: str, sizes: Sizes) -> dict[str, Any]:
    """Fixed batches; each runs until its longest answer is done."""
    model = plain_model(sizes)

    def make(answers: Sequence[Asked]) -> list[int]:
        lengths: list[int] = []
        for batch in batches(answers, sizes.rows):
            given = padded(batch)
            out = model.generate(**given, generation_config=sampling(max(answer.new for answer in batch)))
            lengths += [out.shape[1] - given["input_ids"].shape[1]] * len(batch)
        return lengths

    return timed(make, asked(scenario, sizes))


def generate_samples(sizes: Sizes) -> dict[str, Any]:
    model = plain_model(sizes)

    def make(answers: Sequence[Asked]) -> list[int]:
        given = padded(answers[:: sizes.samples])
        config = sampling(answers[0].new, num_return_sequences=sizes.samples)
        out = model.generate(**given, generation_config=config)
        return [out.shape[1] - given["input_ids"].shape[1]] * len(out)

    return timed(make, asked("samples", sizes))


def generate_batch(sizes: Sizes) -> dict[str, Any]:
    """transformers' continuous batching, on its attention for sdpa."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = plain_model(sizes)
    pages = sizes.rows * (1 + (sizes.prompt + sizes.new) // PAGE) + 1
    settings = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages, max_batch_tokens=BATCH_TOKENS, auto_switch_to_flash=False
    )

    def make(answers: Sequence[Asked]) -> list[int]:
        out = model.generate_batch(
            [list(answer.prompt) for answer in answers],
            generation_config=sampling(answers[0].new),
            continuous_batching_config=settings,
        )
        errors = [str(one.error) for one in out.values() if one.error is not None]
        if errors:
            raise SystemExit(errors[0])
        return [len(one.generated_tokens) for one in out.values()]

    return timed(make, asked("plain", sizes))


# ---- peft ----


def peft_generate(adapters: int, sizes: Sizes) -> dict[str, Any]:
    """LoRA adapters of rank 16 on all linear layers, random and not zero; with several, each row names its own."""
    from peft import LoraConfig

    model = peft_model("lora")
    model.get_base_model().generation_config = GenerationConfig(pad_token_id=0)
    for number in range(1, adapters):
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model.add_adapter(f"lora-{number}", config)
    frozen(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.02)
    names = ["default", *(f"lora-{number}" for number in range(1, adapters))]

    def make(answers: Sequence[Asked]) -> list[int]:
        given: dict[str, Any] = padded(answers)
        if adapters > 1:
            given["adapter_names"] = [names[place * adapters // len(answers)] for place in range(len(answers))]
        out = model.generate(**given, generation_config=sampling(answers[0].new))
        return [out.shape[1] - given["input_ids"].shape[1]] * len(out)

    return timed(make, asked("lora", sizes))


# ---- the limit ----


def products(sizes: Sizes, *, steps: int = 16) -> dict[str, Any]:
    """The seconds that the base's linear layers and its head alone take of the work, on the model's own weights.

    The prompts once, all rows together, with the head for the last position; then a step for each further token.
    Medians of 3 and ``steps`` passes stand for all. By torch's own choice of library or by oneDNN: the faster one.
    """
    model = plain_model(sizes)
    layers = [module.weight for module in model.model.modules() if isinstance(module, nn.Linear)]
    head = model.lm_head.weight

    def onednn(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return result

    def seconds(multiply: Callable[[Tensor, Tensor], Tensor], tokens: int, passes: int) -> Tensor:
        """Median seconds on the wall and of the processor, (2,)."""
        inputs = {width: torch.randn(tokens, width) for width in {weight.shape[1] for weight in layers}}
        last = torch.randn(sizes.rows, head.shape[1])
        times = []
        for _ in range(passes + 1):
            begin = time.perf_counter(), time.process_time()
            for weight in layers:
                multiply(inputs[weight.shape[1]], weight)
            multiply(last, head)
            times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        return torch.tensor(times[1:], dtype=torch.float64).median(dim=0).values

    def parts(multiply: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return seconds(multiply, sizes.rows * sizes.prompt, 3), seconds(multiply, sizes.rows, steps)

    found = [parts(multiply) for multiply in (nn.functional.linear, onednn)]
    prompts, step = min(found, key=lambda each: float((each[0] + (sizes.new - 1) * each[1])[0]))
    wall, processor = (prompts + (sizes.new - 1) * step).tolist()
    return {
        "tokens": wanted(asked("plain", sizes)),
        "seconds": wall,
        "user_seconds": processor,
        "system_seconds": 0.0,
        "step_ms": 1000 * float(step[0]),
        "prompts_ms": 1000 * float(prompts[0]),
    }


def run(contender: str, sizes: Sizes) -> dict[str, Any]:
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "generate": lambda: generate("plain", sizes),
        "generate-batch": lambda: generate_batch(sizes),
        "generate-samples": lambda: generate_samples(sizes),
        "generate-unequal": lambda: generate("unequal", sizes),
        "peft": lambda: peft_generate(1, sizes),
        "peft-mixed": lambda: peft_generate(ADAPTERS, sizes),
        "products": lambda: products(sizes),
    }
    with torch.inference_mode():
        return makers[contender]()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print_result(run(sys.argv[1], Sizes(**json.loads(sys.argv[2]))))

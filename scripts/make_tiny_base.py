"""Make the embedded base ``tiny``: tokenizer, pretraining, held-out loss and samples.

    python scripts/make_tiny_base.py --data FOLDER --out FOLDER
    python scripts/make_tiny_base.py --data FOLDER --evaluate-only graftlm/base/tiny

The data folder holds ``pretraining/*.jsonl.gz``; where they come from stands in graftlm/base/tiny/README.md.
The same command goes on from the last checkpoint. The model appears in OUT/model. All is fixed by the seed, on one
machine with one number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from graftlm import AdaptedModel
from graftlm.base.files import write_folder
from graftlm.base.loading import load_base, load_tokenizer
from graftlm.cli.console import as_duration, console, print_error
from graftlm.data.readers import read_rows
from graftlm.errors import UserError
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Request, SamplingSettings
from graftlm.training.checkpoints import latest_checkpoint, save_checkpoint
from graftlm.training.optimizers import clip_gradients, gradient_norm, learning_rate
from graftlm.training.settings import AdapterTraining

PAD, BOS, EOS = 0, 1, 2
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", *ROLES, *(f"<|reserved_{number}|>" for number in range(9)))
VOCABULARY = 8192

LENGTH = 384  # tokens of a sequence
BATCH = 8  # sequences of a step
HELD_OUT = 300  # the last stories of tinystories
STORY_SHARE = (0.35, 0.70)  # of the sequences, at the first step and at the last
PEAK_RATE, FINAL_SHARE, WARMUP = 2e-3, 0.03, 150
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.97), 0.05, 1.0
CHECKPOINT_EVERY, REPORT_EVERY = 200, 20

PROMPTS = ("Once upon a time", "Lily went to the park and", "The old fox said to the rabbit,")


@dataclass(frozen=True)
class Texts:
    """Documents of the pretraining data."""

    stories: list[str]
    books: list[str]
    held_out: list[str]


def read_texts(folder: Path) -> Texts:
    """Simple stories, all but the last 300; picture books, fairy tales and children's books; the last 300 stories."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [row for _, row in read_rows(folder / "pretraining" / f"{name}.jsonl.gz")]

    stories = [row["text"] for row in rows("tinystories")]
    books = [row["text"] for row in rows("storybooks") if row["lang"] == "en"]
    books += ["\n\n".join(row["sections"]) for row in rows("fairytaleqa_stories")]
    books += [row["text"] for row in rows("childrens_books")]
    return Texts(stories[:-HELD_OUT], books, stories[-HELD_OUT:])


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose first ids are the special tokens. It adds no token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """``<bos>`` text ``<eos>`` as ids, a list for each text."""
    return [[BOS, *ids, EOS] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def pack(documents: Sequence[Sequence[int]], length: int = LENGTH) -> torch.Tensor:
    """Documents one after the other, cut into rows: int32 (rows, length). A rest too short for a row is left out."""
    stream = torch.cat([torch.tensor(document, dtype=torch.int32) for document in documents])
    return stream[: len(stream) // length * length].view(-1, length)


def repeat_rows(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` rows in random order: each is seen once before any is seen again."""
    if count and not len(rows):
        raise UserError("the texts are too few for a single sequence", hint="Check the files of --data.")
    orders: list[torch.Tensor] = []
    while sum(map(len, orders)) < count:
        orders.append(torch.randperm(len(rows), generator=generator))
    return rows[torch.cat(orders)[:count]] if orders else rows[:0]


def mix(
    stories: torch.Tensor, books: torch.Tensor, count: int, seed: int, share: tuple[float, float] = STORY_SHARE
) -> torch.Tensor:
    """``count`` rows; the share of stories grows linearly from ``share[0]`` to ``share[1]``, evenly interleaved."""
    due = torch.linspace(*share, count, dtype=torch.float64).cumsum(0).floor()
    is_story = torch.diff(due, prepend=due.new_zeros(1)) > 0
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.empty(count, stories.shape[1], dtype=torch.int32)
    mixed[is_story] = repeat_rows(stories, int(is_story.sum()), generator)
    mixed[~is_story] = repeat_rows(books, int((~is_story).sum()), generator)
    return mixed


def build_model(seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def train(model: PreTrainedModel, sequences: torch.Tensor, checkpoints: Path, every: int = CHECKPOINT_EVERY) -> None:
    """Train on int32 ``sequences`` (steps × 8, length), in their order, from the newest checkpoint if there is one.

    Raises:
        UserError: the checkpoint is of other sequences.
    """
    steps = len(sequences) // BATCH
    digest = hashlib.sha256(sequences.numpy().tobytes()).hexdigest()
    parameters = dict(model.named_parameters())
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, fused=True)
    schedule = AdapterTraining(
        learning_rate=PEAK_RATE, min_learning_rate=FINAL_SHARE, warmup=min(WARMUP, math.ceil(steps / 4))
    )
    start = _restore(checkpoints, digest, parameters, optimizer)
    model.train()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[state]}")
    shown = [column if not isinstance(column, str) else TextColumn(column) for column in columns]
    with Progress(*shown, console=console) as progress:
        task = progress.add_task("training", total=steps, completed=start, state="")
        began = time.monotonic()
        for step in range(start, steps):
            rate = learning_rate(schedule, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids = sequences[step * BATCH : (step + 1) * BATCH].long()
            loss = _next_token_losses(model, ids).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(list(parameters.values()), gradient_norm(list(parameters.values())), CLIP)
            optimizer.step()
            done, seconds = step + 1, time.monotonic() - began
            pace = (done - start) * ids.numel() / seconds
            left = as_duration(seconds / (done - start) * (steps - done))
            state = f"loss {loss.item():.3f} · {pace:,.0f} tokens/s · {left} left"
            progress.update(task, completed=done, state=state)
            if done % REPORT_EVERY == 0 or done in (1, steps):
                progress.console.print(f"step {done}/{steps} · rate {rate:.1e} · {state}")
            if done % every == 0 or done == steps:
                tensors = {f"model.{name}": parameter for name, parameter in parameters.items()}
                for number, moments in optimizer.state_dict()["state"].items():
                    tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in moments.items()}
                save_checkpoint(checkpoints, done, {"step": done, "digest": digest}, tensors, keep=2)


def _restore(
    checkpoints: Path, digest: str, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> int:
    """Put the newest checkpoint, if any, into the model and its optimizer; gives the steps done."""
    found = latest_checkpoint(checkpoints)
    if found is None:
        return 0
    if found.state["digest"] != digest:
        raise UserError(
            f"{checkpoints} holds checkpoints of another run (other data, steps or seed)",
            hint="Delete that folder or choose another --out.",
        )
    state = optimizer.state_dict()
    for name, tensor in found.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            parameters[rest].data.copy_(tensor)
        else:
            number, _, key = rest.partition(".")
            state["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(state)
    step: int = found.state["step"]
    console.print(f"going on after step {step}")
    return step


def _next_token_losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """ids (rows, n) int64 → losses in nats (rows × (n - 1),): each token but the first, given those before it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


@dataclass(frozen=True)
class HeldOut:
    """Losses are means in nats a predicted token, ``<eos>`` counted among these."""

    packed_loss: float  # stories packed as in training; a row's first token is not predicted
    packed_tokens: int
    story_loss: float  # each story alone, from its <bos>
    story_tokens: int
    bits_per_byte: float  # of each story alone: comparable across tokenizers


@torch.inference_mode()
def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> HeldOut:
    """Held-out loss of ``model`` on ``texts``."""
    model.eval()  # type: ignore[no-untyped-call]
    documents = encode(tokenizer, texts)
    rows = pack(documents).long()
    if not len(rows):
        raise UserError(f"the held-out texts have fewer than {LENGTH} tokens", hint="Check the files of --data.")
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    packed = torch.cat([_next_token_losses(model, batch) for batch in batches]).double()
    alone = torch.cat([_next_token_losses(model, torch.tensor([document])) for document in documents]).double()
    size = sum(len(text.encode()) for text in texts)
    bits = alone.sum().item() / math.log(2) / size
    return HeldOut(packed.mean().item(), len(packed), alone.mean().item(), len(alone), bits)


def sample(base: str, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Each prompt with what the model writes after it: temperature 0.8, top-p 0.9; the seed is the prompt's number."""
    tokenizer = load_tokenizer(base)
    engine = Engine(AdaptedModel.from_pretrained(base, dtype="float32", device="cpu"), tokenizer)
    requests = [
        Request(
            (BOS, *tokenizer(prompt, add_special_tokens=False)["input_ids"]),
            sampling=SamplingSettings(max_new_tokens=120, temperature=0.8, top_p=0.9, seed=number),
        )
        for number, prompt in enumerate(prompts)
    ]
    return [f"{prompt}{done.text}" for prompt, done in zip(prompts, engine.run(requests), strict=True)]


def report(folder: str, texts: Sequence[str]) -> None:
    """Print held-out figures and samples of a stored model, computed in float32."""
    base = load_base(folder, dtype="float32", device="cpu")
    figures = evaluate(base.model, base.tokenizer, texts)
    console.print(f"[bold]held out[/]: {len(texts)} stories")
    for how, loss, tokens in (
        ("packed as in training", figures.packed_loss, figures.packed_tokens),
        ("each story alone", figures.story_loss, figures.story_tokens),
    ):
        console.print(f"  {how}: loss {loss:.4f} a token, perplexity {math.exp(loss):.2f} ({tokens:,} tokens)")
    console.print(f"  {figures.bits_per_byte:.4f} bits a byte of text")
    for number, text in enumerate(sample(folder)):
        console.print(f"\n[bold]sample, seed {number}[/]")
        console.print(text, markup=False, soft_wrap=True)


def make(texts: Texts, out: Path, steps: int, seed: int) -> None:
    """Tokenizer, training, and the model in bfloat16 in ``out/model``."""
    console.print(f"{len(texts.stories):,} stories and {len(texts.books):,} books to train on")
    tokenizer = train_tokenizer([*texts.stories, *texts.books])
    stories, books = (pack(encode(tokenizer, kind)) for kind in (texts.stories, texts.books))
    console.print(f"{stories.numel():,} tokens of stories, {books.numel():,} of books")
    sequences = mix(stories, books, steps * BATCH, seed)
    model = build_model(seed)
    train(model, sequences, out / "checkpoints")
    model.to(torch.bfloat16)  # type: ignore[arg-type]

    def fill(fresh: Path) -> None:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    write_folder(out / "model", fill)
    console.print(f"model in {out / 'model'}")


def main() -> int:
    """Read the command line and do what it says; gives the exit code."""
    parser = argparse.ArgumentParser(description="Make the embedded base tiny.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pretraining/*.jsonl.gz")
    parser.add_argument("--out", type=Path, help="folder for checkpoints and the model")
    parser.add_argument("--steps", type=int, default=6140, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: %(default)s)")
    parser.add_argument("--evaluate-only", metavar="MODEL", help="held-out figures and samples of this model")
    options = parser.parse_args()
    if options.out is None and options.evaluate_only is None:
        parser.error("give --out, or --evaluate-only MODEL")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    try:
        texts = read_texts(options.data)
        if options.evaluate_only is None:
            make(texts, options.out, options.steps, options.seed)
        report(options.evaluate_only or str(options.out / "model"), texts.held_out)
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

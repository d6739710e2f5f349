"""Make a small T5 in minutes: an encoder-decoder to try methods on, pretrained by filling in gaps of stories.

    python scripts/make_tiny_t5.py --data tinystories.jsonl.gz --minutes 10 --out tiny-t5
    graftlm train recipe.yaml        # with base: tiny-t5

The data is a file of texts (a column ``text``), such as TinyStories. The tokenizer is that of the embedded base with
sentinel tokens added. The last 200 texts are held out. Weights, order and gaps are fixed by the seed; how far it gets
depends on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from graftlm.base.files import write_folder
from graftlm.base.loading import load_base, load_tokenizer
from graftlm.cli.console import console, print_error
from graftlm.data.readers import read_rows
from graftlm.errors import UserError
from graftlm.training.optimizers import clip_gradients, gradient_norm, learning_rate
from graftlm.training.settings import AdapterTraining

LENGTH, BATCH = 128, 8  # tokens of a piece of text, and pieces of a step
NOISE, SPAN = 0.15, 3  # share of the tokens that gaps take, and how long a gap is on average
HELD_OUT = 200  # texts
PEAK_RATE, FINAL_SHARE, WARMUP = 3e-3, 0.03, 0.03
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.98), 0.01, 1.0
REPORT_EVERY = 15.0  # seconds
TICKS = 10_000  # the schedule counts time in so many parts


def gaps(length: int = LENGTH) -> tuple[int, int]:
    """How many tokens of a piece are taken out, and in how many gaps."""
    taken = max(1, round(length * NOISE))
    return taken, max(1, round(taken / SPAN))


def make_tokenizer() -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer, and its sentinels, one for each gap."""
    tokenizer = load_tokenizer("tiny")
    _, count = gaps()
    names = [f"<extra_id_{number}>" for number in range(count)]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = None
    return tokenizer, tokenizer.convert_tokens_to_ids(names)


def pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """Texts one after the other, each with its end, cut into pieces: (pieces, LENGTH)."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (*ids, tokenizer.eos_token_id)])
    if len(stream) < LENGTH * BATCH:
        raise UserError(f"the texts have {len(stream):,} tokens; {LENGTH * BATCH:,} are needed for a single step")
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)


def corrupt(
    ids: torch.Tensor, sentinels: Sequence[int], eos: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """A piece with gaps, a sentinel in each; and what stood in them, each behind its sentinel. Both end with ``eos``.

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.1.4; both have one length for all pieces.
    """
    taken, count = gaps(len(ids))
    kept = _parts(len(ids) - taken, count, generator)
    gone = _parts(taken, count, generator)
    source: list[int] = []
    target: list[int] = []
    place = 0
    for sentinel, stay, go in zip(sentinels, kept, gone, strict=True):
        source += [*ids[place : place + stay].tolist(), sentinel]
        target += [sentinel, *ids[place + stay : place + stay + go].tolist()]
        place += stay + go
    return [*source, eos], [*target, eos]


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """``total`` as a sum of ``count`` random whole numbers, each at least one."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    bounds = [0, *cuts.tolist(), total]
    return [stop - start for start, stop in pairwise(bounds)]


def batch_of(
    rows: torch.Tensor, sentinels: Sequence[int], eos: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and targets of some pieces; no padding, as all are of one length."""
    pairs = [corrupt(row, sentinels, eos, generator) for row in rows]
    return torch.tensor([source for source, _ in pairs]), torch.tensor([target for _, target in pairs])


def build(vocabulary: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """The untrained model: 2.4 million parameters, no dropout."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=352,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def losses(model: T5ForConditionalGeneration, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Losses in nats of every target token, (rows × length)."""
    start = torch.full_like(target[:, :1], model.config.decoder_start_token_id)
    output = model(input_ids=source, decoder_input_ids=torch.cat([start, target[:, :-1]], 1), use_cache=False)
    return cross_entropy(output.logits.flatten(0, 1).float(), target.flatten(), reduction="none")


def train(
    model: T5ForConditionalGeneration, rows: torch.Tensor, sentinels: Sequence[int], eos: int, minutes: float, seed: int
) -> int:
    """Train for so many minutes; the learning rate falls with the time. Gives the steps done."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = AdapterTraining(learning_rate=PEAK_RATE, min_learning_rate=FINAL_SHARE, warmup=WARMUP)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    began = told = time.monotonic()
    step, mean = 0, 0.0
    order = torch.randperm(len(rows), generator=generator)
    while (gone := (time.monotonic() - began) / (60 * minutes)) < 1:
        start = step * BATCH % (len(rows) - BATCH + 1)
        if start < BATCH and step:
            order = torch.randperm(len(rows), generator=generator)
        source, target = batch_of(rows[order[start : start + BATCH]], sentinels, eos, generator)
        for group in optimizer.param_groups:
            group["lr"] = max(learning_rate(schedule, int(gone * TICKS), TICKS), PEAK_RATE / 100)
        loss = losses(model, source, target).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(parameters, gradient_norm(parameters), CLIP)
        optimizer.step()
        step += 1
        mean += (loss.item() - mean) / min(step, 50)
        if time.monotonic() - told > REPORT_EVERY:
            told = time.monotonic()
            console.print(f"{gone:4.0%} · step {step} · loss {mean:.3f} (mean of the last 50)")
    return step


@torch.no_grad()
def evaluate(model: T5ForConditionalGeneration, rows: torch.Tensor, sentinels: Sequence[int], eos: int) -> float:
    """Mean held-out loss in nats a token, with gaps of a seed of their own."""
    model.eval()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(1)
    parts = [batch_of(rows[start : start + BATCH], sentinels, eos, generator) for start in range(0, len(rows), BATCH)]
    return float(torch.cat([losses(model, *part) for part in parts]).double().mean())


def make(data: Path, out: Path, minutes: float, seed: int) -> None:
    """Tokenizer, training, held-out loss before and after, and the folder."""
    texts = [row["text"] for _, row in read_rows(data) if isinstance(row.get("text"), str)]
    if len(texts) <= HELD_OUT:
        raise UserError(f"{data} has {len(texts)} texts in a column 'text'; more than {HELD_OUT} are needed")
    tokenizer, sentinels = make_tokenizer()
    eos = tokenizer.eos_token_id
    rows, held_out = pieces(tokenizer, texts[:-HELD_OUT]), pieces(tokenizer, texts[-HELD_OUT:])
    model = build(len(tokenizer), tokenizer, seed)
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{len(texts):,} texts, {rows.numel():,} tokens to learn from; {size / 1e6:.1f}M parameters")
    console.print(f"held-out loss before: {evaluate(model, held_out, sentinels, eos):.3f} nats a token")
    steps = train(model, rows, sentinels, eos, minutes, seed)
    console.print(f"held-out loss after {steps} steps: {evaluate(model, held_out, sentinels, eos):.3f} nats a token")

    def fill(fresh: Path) -> None:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    write_folder(out, fill)
    loaded = load_base(str(out), dtype="float32", device="cpu")
    console.print(f"model in {out}, an {loaded.kind}")


def main() -> int:
    """Read the command line and do what it says; gives the exit code."""
    parser = argparse.ArgumentParser(description="Make a small T5 in minutes.")
    parser.add_argument("--data", type=Path, required=True, help="file of texts, such as tinystories.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is trained (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and gaps (default: %(default)s)")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes must be more than 0")
    try:
        make(options.data, options.out, options.minutes, options.seed)
    except UserError as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

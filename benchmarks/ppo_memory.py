"""Peak memory of PPO with all four roles on one base, beside instruction tuning of the same rows.

    python benchmarks/ppo_memory.py

The work: the randomly initialised Llama of ``sft_vs_trl.py``, LoRA of rank 16 on all linear layers, float32. PPO has a
policy, a value adapter, a reward adapter (both with a head) and the bare base as the reference: two phases of 16
answers, two passes over each, all 16 in a step. Instruction tuning learns the rows of PPO's last phase, as many steps.
Each runs in a process of its own, with all defaults; what counts is the most that was resident, the libraries and the
base included. At the end of every round of PPO all tensors are looked at: one that is equal to a weight of the base and
lies elsewhere is a copy of it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import REPOSITORY, Failure, Meter, Table, machine_line, print_result, run_child
from sft_vs_trl import ALPHA, RANK, build_model, gigabytes

if TYPE_CHECKING:
    import torch

    from graftlm.data.batches import EncodedRow

PHASES, PASSES = 2, 2
PROMPT_WORDS, ANSWER_TOKENS = 150, 64
TARGET = 1.3
TOKENIZER = REPOSITORY / "graftlm" / "base" / "tiny"
WORDS = ("story", "boat", "garden", "friend", "little", "walked", "happy", "under", "tree", "blue", "said", "and")


def prompts(count: int) -> list[str]:
    """Texts of random words, all of one length."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=PROMPT_WORDS)) for _ in range(count)]


def copies(base: torch.nn.Module) -> int:
    """How many live tensors hold a weight matrix of the base a second time."""
    import gc

    import torch

    own: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for parameter in base.parameters():
        if parameter.dim() > 1:
            own.setdefault(tuple(parameter.shape), []).append(parameter)
    places = {each.untyped_storage().data_ptr() for same in own.values() for each in same}
    found = {
        each.untyped_storage().data_ptr()
        for each in gc.get_objects()
        if isinstance(each, torch.Tensor)
        and each.untyped_storage().data_ptr() not in places
        and any(torch.equal(each, weight) for weight in own.get(tuple(each.shape), ()) if weight.dtype == each.dtype)
    }
    return len(found)


def run_ppo(rows: int, folder: Path) -> dict[str, Any]:
    """Two phases of PPO; the rows of the last one are left in ``folder``."""
    import graftlm  # before torch: it sets how OpenMP threads wait

    from transformers import AutoTokenizer  # isort: skip

    from graftlm import alignment
    from graftlm.alignment.online import Values
    from graftlm.data.instances import Message
    from graftlm.data.templates import resolve_chat_template
    from graftlm.evaluation.rewards import reward_model
    from graftlm.training.events import Event, RoundDone
    from graftlm.training.loop import train
    from graftlm.training.objectives import build_objective
    from graftlm.training.settings import AdapterTraining
    from graftlm.training.task import Task

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    model = graftlm.AdaptedModel(build_model(0), tokenizer)
    model.add("policy", graftlm.LoRA(rank=RANK, alpha=ALPHA))
    model.add("value", graftlm.LoRA(rank=RANK, alpha=ALPHA), criteria=1)
    model.add("reward", graftlm.LoRA(rank=RANK, alpha=ALPHA), criteria=1)
    settings = AdapterTraining.model_validate(
        {
            "objective": {
                "type": "ppo",
                "rewards": {"liked": {"adapter": "reward"}},
                "value": "value",
                "prompts": rows,
                "passes": PASSES,
                "max_new_tokens": ANSWER_TOKENS,
            },
            "epochs": 1,
        }
    )
    learns_values = AdapterTraining.model_validate({"objective": "value"})
    template = resolve_chat_template("auto", tokenizer, model.kind)
    policy = alignment.Policy(
        alignment.make_policy(model, "policy", template),
        tuple(
            alignment.Prompt((Message("user", text),), row) for row, text in enumerate(prompts(PHASES * rows), start=1)
        ),
        (alignment.answered_reward("liked", reward_model(model, "reward", template=template)),),
        settings,
        value=("value",),
    )
    tasks = [
        Task("policy", (), settings, objective=policy.settings.objective(), source=policy),
        Task("value", (), learns_values, objective=build_objective(learns_values.objective), source=Values(policy)),
    ]
    meter, most = Meter(), 0

    def watch(event: Event) -> None:
        nonlocal most
        if isinstance(event, RoundDone):
            most = max(most, copies(model.base))
            meter.stop()

    meter.start()
    outcome = train(model, tasks, watch=watch)
    meter.stop()
    phase = outcome.progress["policy"].phase
    assert phase is not None
    (folder / "rows.json").write_text(json.dumps([[list(row.ids), row.n_supervised] for row in phase.rows]))
    return meter.result() | described(phase.rows) | {"rounds": outcome.rounds, "copies": most}


def run_sft(folder: Path, steps: int) -> dict[str, Any]:
    """Instruction tuning of the rows in ``folder``, all of them at each step."""
    import graftlm
    from graftlm.data.batches import EncodedRow
    from graftlm.training.loop import train
    from graftlm.training.settings import AdapterTraining
    from graftlm.training.task import Task

    known = json.loads((folder / "rows.json").read_text())
    rows = tuple(
        EncodedRow(ids, [place >= len(ids) - learnt for place in range(len(ids))], "answers", number)
        for number, (ids, learnt) in enumerate(known, start=1)
    )
    model = graftlm.AdaptedModel(build_model(0))
    model.add("lora", graftlm.LoRA(rank=RANK, alpha=ALPHA))
    meter = Meter()
    meter.start()
    outcome = train(model, [Task("lora", rows, AdapterTraining(batch_rows=len(rows), epochs=steps))])
    meter.stop()
    return meter.result() | described(rows) | {"rounds": outcome.rounds}


def described(rows: tuple[EncodedRow, ...]) -> dict[str, int]:
    """Rows, their tokens, and those of them that are learnt."""
    return {
        "rows": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "learnt": sum(row.n_supervised for row in rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="answers of a phase, and rows of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        which, folder = options.child
        print_result(run_ppo(options.rows, Path(folder)) if which == "ppo" else run_sft(Path(folder), PHASES * PASSES))
        return 0
    print(machine_line(options.threads))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for which in ("ppo", "sft"):
            work = ["--child", which, folder, "--rows", str(options.rows)]
            result = run_child("ppo_memory.py", work, threads=options.threads)
            if isinstance(result, Failure):
                sys.exit(f"{which} failed: {result.reason}")
            results.append(result)
    ppo, sft = results
    table = Table("Peak memory of PPO and of instruction tuning", ["", "steps", "rows", "tokens", "learnt", "peak GB"])
    for name, result in (("PPO, four roles", ppo), ("instruction tuning", sft)):
        counts = [f"{result[key]:,}" for key in ("rounds", "rows", "tokens", "learnt")]
        table.add(name, *counts, gigabytes(result))
    table.print()
    ratio = ppo["peak_bytes"] / sft["peak_bytes"]
    print(f"PPO takes {ratio:.2f} times as much; wanted: at most {TARGET:g}")
    print(f"weights of the base that are held twice: {ppo['copies']}; wanted: 0")
    return int(ratio > TARGET or ppo["copies"] > 0)


if __name__ == "__main__":
    sys.exit(main())

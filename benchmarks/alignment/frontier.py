"""Policies and best-of-n of their start, at how much divergence: reward, the true criterion, distinct-2.

    python benchmarks/alignment/frontier.py runs/start/adapters/start runs/policies/adapters/ppo-0 …

Held-out prompts, answers at temperature 1. Best-of-n takes the answer of the start that the reward adapter likes best.
KL is in nats an answer; that of best-of-n is log n − (n − 1) / n at most. Intervals are over prompts.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib.resources import files
from pathlib import Path

import numpy as np

from graftlm.alignment import Prompt, Roles, Sampling, roll_out, score_rollouts
from graftlm.alignment.rewards import answered_reward, function_reward, reward_rollouts
from graftlm.alignment.watching import distinct_2
from graftlm.data.instances import Message
from graftlm.demo.criterion import reward as fulfilled
from graftlm.evaluation.rewards import reward_model
from graftlm.evaluation.speakers import open_adapters
from graftlm.objectives.estimates import kl_estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", type=Path)
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--reward", type=Path, default=Path("runs/preferences/adapters/reward"))
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--answers", type=int, default=8, help="of each policy to each prompt")
    parser.add_argument("--best-of", type=int, default=256, help="the largest n of best-of-n")
    parser.add_argument("--best-of-prompts", type=int, default=40)
    arguments = parser.parse_args()
    prompts = held_out_prompts()[: arguments.prompts]
    opened = open_adapters([arguments.start, *arguments.policies, arguments.reward])
    start, *policies, judge = opened.adapters
    liked = answered_reward("liked", reward_model(opened.model, judge.stack))
    rewards = [liked, function_reward(fulfilled, "true", weight=0.0)]

    every = (start, *policies)
    drawn = roll_out(opened.model, every, prompts, Sampling(n=arguments.answers, max_new_tokens=100), step=0)
    scores = score_rollouts(opened.model, drawn, {each.label: Roles(reference=start.stack) for each in every})
    parts = reward_rollouts(drawn, rewards).parts
    print(f"{len(prompts)} prompts, {arguments.answers} answers each; KL k1 and k3 in nats an answer")
    print(
        "| policy | true criterion | reward | KL (k1) | KL (k3) | distinct-2 | tokens |\n|---|---|---|---|---|---|---|"
    )
    for each in every:
        places = drawn.of(each.label)
        far = [(scores.log_probs[place], scores.reference[place]) for place in places]
        print(
            f"| {each.label} | {shown([parts['true'][place] for place in places], len(prompts), 100, '%')} "
            f"| {shown([parts['liked'][place] for place in places], len(prompts))} "
            f"| {shown([kl_estimate(own, other, 'k1').sum() for own, other in far], len(prompts))} "
            f"| {shown([kl_estimate(own, other, 'k3').sum() for own, other in far], len(prompts))} "
            f"| {distinct_2([drawn.answers[place].token_ids for place in places]):.3f} "
            f"| {np.mean([len(drawn.answers[place].token_ids) for place in places]):.0f} |"
        )

    some, most = prompts[: arguments.best_of_prompts], arguments.best_of
    rollouts = roll_out(opened.model, [start], some, Sampling(n=most, max_new_tokens=100, seed=1), step=0)
    parts = reward_rollouts(rollouts, rewards).parts
    by_prompt = {name: np.asarray(values).reshape(len(some), most) for name, values in parts.items()}
    print(f"\nbest of n by the reward, {len(some)} prompts, {most} answers each\n| n | KL at most | true criterion |")
    print("|---|---|---|")
    n = 1
    while n <= most:
        rows = zip(by_prompt["liked"], by_prompt["true"], strict=True)
        rate = np.mean([best_of_n(by, true, n) for by, true in rows])
        print(f"| {n} | {np.log(n) - (n - 1) / n:.2f} | {rate:.1%} |")
        n *= 2
    for place in range(3):
        print(f"\n{prompts[place].messages[0].content}")
        for policy in (start, *policies):
            print(f"  {policy.label}: {sample(opened, policy, prompts[place])}")


def held_out_prompts() -> list[Prompt]:
    """Those of the held-out wishes and pairs, each once."""
    texts = []
    for name, key in (("wishes", "instruction"), ("preferences", "prompt")):
        lines = (files("graftlm.demo") / f"data/alignment/{name}.held_out.jsonl").read_text(encoding="utf-8")
        texts += [json.loads(line)[key] for line in lines.splitlines()]
    return [Prompt((Message("user", text),), row) for row, text in enumerate(dict.fromkeys(texts), start=1)]


def sample(opened, policy, prompt):  # type: ignore[no-untyped-def]
    answers = roll_out(opened.model, [policy], [prompt], Sampling(n=1, max_new_tokens=100, seed=2), step=0).answers
    return " ".join(answers[0].text.split())


def best_of_n(by, of, n: int) -> float:  # type: ignore[no-untyped-def]
    """What the best of ``n`` by one number has of another: the mean over all subsets of n (as pass@k is estimated)."""
    total = math.comb(len(by), n)
    return float(sum(math.comb(rank, n - 1) / total * of[place] for rank, place in enumerate(np.argsort(by))))


def shown(values, prompts: int, scale: float = 1.0, unit: str = "") -> str:  # type: ignore[no-untyped-def]
    """The mean with its 95% interval, prompts drawn again."""
    by_prompt = scale * np.asarray([float(value) for value in values]).reshape(prompts, -1).mean(axis=1)
    again = np.random.default_rng(0).integers(0, prompts, (2000, prompts))
    low, high = np.percentile(by_prompt[again].mean(axis=1), [2.5, 97.5])
    return f"{by_prompt.mean():.1f}{unit} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()

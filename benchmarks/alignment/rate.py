"""How often stories of adapters fulfil the criterion, on the prompts of the held-out pairs.

    python benchmarks/alignment/rate.py runs/start/adapters/start runs/preferences/adapters/dpo

One story a prompt at temperature 1, of all adapters in one pass. Prints the share that fulfils the criterion with
Wilson's 95% interval, distinct-2 (different pairs of neighbouring words, as a share of all), and words a story.
"""

from __future__ import annotations

import argparse
import itertools
import json
from importlib.resources import files
from pathlib import Path

from graftlm.data.instances import Message
from graftlm.demo.criterion import fulfils
from graftlm.evaluation.speakers import open_adapters
from graftlm.evaluation.statistics import wilson_interval
from graftlm.generation import Engine, SamplingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--prompts", type=int, default=150)
    arguments = parser.parse_args()
    lines = (
        (files("graftlm.demo") / "data/alignment/preferences.held_out.jsonl").read_text(encoding="utf-8").splitlines()
    )
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))[: arguments.prompts]
    opened = open_adapters(arguments.folders)
    requests = [
        speaker.request(
            [Message("user", prompt)],
            opened.tokenizer,
            SamplingSettings(max_new_tokens=120, temperature=1.0, seed=number),
        )
        for speaker in opened.adapters
        for number, prompt in enumerate(prompts)
    ]
    answers = iter(Engine(opened.model, opened.tokenizer).run(requests))
    for speaker in opened.adapters:
        stories = [(prompt, (next(answers).text or "").strip()) for prompt in prompts]
        right = wilson_interval(sum(fulfils(prompt, story) for prompt, story in stories), len(stories))
        words = [story.split() for _, story in stories]
        pairs = [pair for each in words for pair in itertools.pairwise(each)]
        print(
            f"{speaker.label}: {right.value:.1%} [{right.low:.1%}, {right.high:.1%}] of {len(stories)} stories, "
            f"distinct-2 {len(set(pairs)) / len(pairs):.3f}, {sum(map(len, words)) / len(words):.1f} words"
        )
        print(f"  {stories[0][0]}\n  {stories[0][1]}")


if __name__ == "__main__":
    main()

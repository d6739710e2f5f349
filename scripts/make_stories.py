"""Write graftlm/demo/data/stories: plain stories for the pretraining mix of policies.

    python scripts/make_stories.py

Source: no text is copied from a corpus. All are sampled from the embedded base ``tiny``, which learnt mostly from
TinyStories (roneneldan/TinyStories, CDLA-Sharing-1.0), from nothing but the sign that a text begins. Kept are those
that end by themselves within 60 to 200 tokens, and no two that begin alike. The seed fixes all, on one machine with one
number of threads.
"""

from __future__ import annotations

import json
from pathlib import Path

from graftlm import AdaptedModel
from graftlm.base.loading import load_tokenizer
from graftlm.generation import Engine, Request, SamplingSettings

SEED = 11
STORIES = 300
DRAWN = 900
SHORTEST, LONGEST = 60, 200
FILE = Path(__file__).resolve().parent.parent / "graftlm" / "demo" / "data" / "stories" / "stories.jsonl"


def sample(number: int) -> list[str]:
    """Whole texts of the bare base, one a seed."""
    tokenizer = load_tokenizer("tiny")
    model = AdaptedModel.from_pretrained("tiny", dtype="float32", device="cpu")
    ends = tuple({tokenizer.eos_token_id})
    requests = [
        Request(
            (tokenizer.bos_token_id,),
            sampling=SamplingSettings(
                max_new_tokens=LONGEST, temperature=0.8, top_p=0.95, seed=SEED * 10_000 + each, stop_ids=ends
            ),
        )
        for each in range(number)
    ]
    return [
        " ".join((done.text or "").split())
        for done in Engine(model, tokenizer, max_batch_rows=64).run(requests)
        if done.finish_reason == "stop" and len(done.token_ids) >= SHORTEST
    ]


def distinct(texts: list[str]) -> list[str]:
    """Those that end a sentence, the first of those whose first twelve words are the same."""
    first = {" ".join(text.split()[:12]): text for text in reversed(texts) if text[-1:] in '.!?"'}
    return [text for text in texts if first.get(" ".join(text.split()[:12])) == text]


def main() -> None:
    stories = distinct(sample(DRAWN))[:STORIES]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories), encoding="utf-8")
    print(f"{len(stories)} stories, {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

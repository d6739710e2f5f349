"""How often a trained classifier gives the better story of a held-out pair the higher score.

python benchmarks/alignment/judge_pairs.py runs/judge/run [runs/judge/pairs.json]

The score is log p(yes) - log p(no) of the adapter's head on prompt and story. Give a file to keep all scores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from graftlm.data.instances import Message
from graftlm.data.prepare import RowCounts
from graftlm.evaluation.labels import Predictor
from graftlm.evaluation.speakers import Opened, open_adapters
from graftlm.training.forward import RoutedRow, class_log_probs

from singles import Pair, pairs, singles  # isort: skip
from word_counts import show  # isort: skip

PROMPT = "{prompt}\n{story}"  # as in judge.yaml


def logits(opened: Opened, rows: list[Pair]) -> np.ndarray:
    """log p(yes) - log p(no) of the first adapter for each labelled story: (rows,)."""
    (speaker, *_) = opened.adapters
    if speaker.head is None:
        raise SystemExit(f"{speaker.label} has no head")
    predictor = Predictor.of(opened.model, opened.tokenizer, speaker.stack, speaker.head, speaker.template)
    asked = [predictor.asked([Message("user", PROMPT.format(**row))], number) for number, row in enumerate(rows)]
    counts = RowCounts()
    encoded = [RoutedRow(row, speaker.stack) for _, row in predictor.rendering.rows(asked, counts)]
    assert len(encoded) == len(rows), "no row is dropped"
    yes, no = (speaker.head.labels.index(label) for label in ("yes", "no"))
    return np.array([float(t[0, yes] - t[0, no]) for t in class_log_probs(opened.model, encoded, 8192, {})])


def main() -> None:
    held_out = pairs("held_out")
    opened = open_adapters([Path(sys.argv[1])], dtype="float32", device="cpu")
    scores = logits(opened, list(singles(held_out))).reshape(-1, 2)
    single = (np.mean(scores[:, 0] > 0) + np.mean(scores[:, 1] <= 0)) / 2
    show(f"the adapter {opened.adapters[0].label}", scores[:, 0] - scores[:, 1], float(single))
    lengths = np.array([len(row["story"].split()) for row in singles(held_out)])
    print(f"correlation of score and length: {np.corrcoef(scores.ravel(), lengths)[0, 1]:.2f}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(scores.tolist()), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a guess by the labels' frequencies alone scores: the mark that an adapter with a head must beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from graftlm.data.batches import EncodedRow
from graftlm.training.forward import RowScore


def frequency_scores(learnt: Sequence[EncodedRow], held_out: Sequence[EncodedRow]) -> list[RowScore]:
    """Scores of the held-out rows under the frequencies of the classes in the rows to learn from.

    Every class counts as seen once more than it was, log p(c) = log (n_c + 1) − log (n + classes), so that a class
    that was not seen is no surprise without end; the first choice is always the most frequent class.
    """
    counts = Counter(target for row in learnt for target in row.targets or () if target >= 0)
    classes = {*counts, *(target for row in held_out for target in row.targets or () if target >= 0)}
    total = math.log(sum(counts.values()) + len(classes))
    (most, _), *_ = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    scores = []
    for row in held_out:
        targets = [target for target in row.targets or () if target >= 0]
        log_prob = sum(math.log(counts[target] + 1) - total for target in targets)
        scores.append(RowScore(log_prob, len(targets), targets.count(most), (most,) * len(targets)))
    return scores

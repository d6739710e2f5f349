"""A set of hashes behaves as Python's own, in a fraction of its memory."""

from __future__ import annotations

import random

from graftlm.data.hashes import Hashes


def test_it_is_a_set() -> None:
    rng = random.Random(0)
    keys = [rng.getrandbits(64) for _ in range(5000)] + [2**64 - 1, 1, 1024, 2048, 3072]
    keys += rng.sample(keys, 2000)
    ours, theirs = Hashes(4), set[int]()
    for key in keys:
        assert ours.add(key) == (key not in theirs)
        theirs.add(key)
    assert len(ours) == len(theirs)
    assert ours.table.itemsize * len(ours.table) <= 25 * len(theirs)

"""Virtual tokens stand where they belong, and change nothing of what is learnt."""

from __future__ import annotations

from graftlm.data.batches import EncodedRow, pad
from graftlm.training.virtual_rows import fit

VOCABULARY = 50


def learnt(row: EncodedRow) -> list[tuple[int, int]]:
    """What stands before each prediction, and what is predicted."""
    padded = pad([row], pad_id=0)
    ids = padded.input_ids.flatten()[padded.positions].tolist()
    return list(zip(ids, padded.targets.tolist(), strict=True))


def test_in_front_of_next_tokens() -> None:
    row = EncodedRow([5, 6, 7], [True, False, True], "rows", 1)
    fitted = fit(row, 2, VOCABULARY)
    assert fitted.ids == [50, 51, 5, 6, 7]
    assert learnt(fitted) == learnt(row) == [(6, 7)]
    assert fit(fitted, 2, VOCABULARY) is fitted
    assert fit(fitted, 0, VOCABULARY).ids == row.ids


def test_in_front_of_targets() -> None:
    row = EncodedRow([5, 6, 7], [False] * 3, "rows", 1, [2, -1, 3])
    fitted = fit(row, 2, VOCABULARY)
    assert fitted.targets == [-1, -1, 2, -1, 3]
    assert learnt(fitted) == learnt(row) == [(5, 2), (7, 3)]
    assert fit(fitted, 0, VOCABULARY).targets == row.targets


def test_where_a_template_put_them() -> None:
    row = EncodedRow([5, 50, 6, 51], [False, False, True, False], "rows", 1)
    assert fit(row, 2, VOCABULARY) is row
    assert fit(row, 0, VOCABULARY).ids == [5, 6]


def test_before_the_source_of_an_encoder_decoder() -> None:
    row = EncodedRow([0, 6], [False, True], "rows", 1, source_ids=[8, 9])
    fitted = fit(row, 3, VOCABULARY)
    assert (fitted.source_ids, fitted.ids) == ([50, 51, 52, 8, 9], [0, 6])
    assert fit(fitted, 0, VOCABULARY).source_ids == [8, 9]

"""Ranks by layer and matrix, and the curve of quality by rank."""

from __future__ import annotations

import math
from dataclasses import replace

from graftlm.evaluation.rank_charts import rank_curve, rank_map
from graftlm.evaluation.report import render
from tests.evaluation.fake_run import fake_run
from tests.evaluation.test_report import Page

RANKS = {
    "model.layers.0.self_attn.q_proj": 4,
    "model.layers.0.mlp.up_proj": 0,
    "model.layers.1.self_attn.q_proj": 1,
    "model.layers.1.mlp.up_proj": 7,
    "lm_head": 2,
}


def test_a_row_for_each_layer_and_a_column_for_each_matrix() -> None:
    found = rank_map(RANKS)
    assert found is not None
    assert found.columns == ("q_proj", "up_proj", "lm_head")
    assert found.rows == (("0", (4, 0, None)), ("1", (1, 7, None)), ("", (None, None, 2)))
    assert (found.most, found.total) == (7, 14)
    assert rank_map({}) is None


def test_names_that_mean_two_matrices_stay_whole() -> None:
    found = rank_map({"h.0.attn.c_proj": 1, "h.0.mlp.c_proj": 2, "h.0.mlp.c_fc": 3})
    assert found is not None
    assert found.columns == ("attn.c_proj", "mlp.c_proj", "c_fc")


def test_the_stacks_of_an_encoder_decoder_are_told_apart() -> None:
    found = rank_map({"encoder.block.0.layer.0.q": 1, "decoder.block.0.layer.0.q": 2})
    assert found is not None
    assert [label for label, _ in found.rows] == ["encoder 0", "decoder 0"]


def test_the_curve_falls_where_the_loss_falls() -> None:
    curve = rank_curve([(8, 1.0, 0.5), (1, 3.0, 0.1), (2, 2.0, 0.2), (4, math.nan, 0.0)])
    assert curve is not None
    assert [rank for rank, _, _ in curve.scores] == [1, 2, 8]
    assert [x for x, _ in curve.markers] == [0, round(100 / 7, 2), 100]
    heights = [y for _, y in curve.markers]
    assert heights == sorted(heights)
    assert curve.hover[0][2] == "rank 1: loss 3, exact 10%"
    assert rank_curve([(4, 1.0, 0.0)]) is None


def test_both_stand_in_the_report() -> None:
    report = fake_run()
    assert "Ranks" not in render(report)
    first, second, *rest = report.adapters
    scores = [(rank, 3.0 - 0.2 * rank, 0.1 * rank) for rank in (1, 2, 4, 8)]
    page = render(replace(report, adapters=[replace(first, ranks=RANKS), replace(second, by_rank=scores), *rest]))
    Page(page)  # its tags match
    assert "feelings: rank of each matrix" in page
    assert 'style="--share:45%">7</td>' in page
    assert "questions: loss at each rank" in page
    assert "rank 8: loss 1.4, exact 80%" in page

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import graftlm

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "rollouts.md"


@pytest.mark.slow
def test_the_example_raises_its_reward(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code[0], names)
    history = names["history"]
    assert history[0].reward_mean < 0.2
    assert history[-1].reward_mean > history[0].reward_mean + 0.5
    assert max(each.largest_deviation for each in history) < 1e-4
    assert "reward" in capsys.readouterr().out
    exec(code[1], names)
    scores = graftlm.alignment.score_rollouts(names["model"], names["rollouts"], names["roles"], bound=float("inf"))
    assert all(values is not None for values in scores.values)
    exec(code[2], names)
    chosen = names["chosen"]
    assert len(chosen.places) + sum(chosen.dropped.values()) == len(names["rollouts"].answers)
    assert graftlm.alignment.best_of_n_kl(8) == pytest.approx(1.204, abs=5e-4)

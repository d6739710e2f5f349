"""The page in a real browser: what its script does, and that it fits a phone. Skipped where there is no Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from graftlm.evaluation.eval_report import render
from graftlm.evaluation.evaluation import Evaluation
from tests.evaluation.fake_evaluation import ADAPTERS, fake_evaluation, many

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]

ASK = """
const wide = () => ({page: document.documentElement.scrollWidth, window: innerWidth});
const key = (plot, name) => plot.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const found = {wide: wide()};
const scatter = document.querySelector("[data-scatter]");
if (scatter) {
  const [up, across] = scatter.querySelectorAll("select");
  const plot = scatter.querySelector("[data-plot]"), tip = plot.querySelector(".tip");
  key(plot, "ArrowRight");
  found.first = tip.textContent;
  key(plot, "ArrowRight");
  found.second = tip.textContent;
  key(plot, "End");
  found.last = tip.textContent;
  key(plot, "Escape");
  found.gone = tip.hidden;
  up.value = [...up.options].find((one) => one.textContent.startsWith("Refuses what harms"))?.value ?? "0";
  across.value = "3";
  across.dispatchEvent(new Event("change"));
  found.title = scatter.querySelector("[data-title]").textContent;
  found.axis = scatter.querySelector("[data-axis-name]").textContent;
  found.hidden = [...scatter.querySelectorAll("[data-point]")].map((one) => one.hidden);
  found.places = [...scatter.querySelectorAll("[data-point]")].map((one) => one.style.left + " " + one.style.top);
  found.scores = [...scatter.querySelectorAll("[data-score]")].map((one) => one.textContent);
  const box = scatter.querySelector("[data-point]").getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent("pointerdown", {clientX: box.left + 3, clientY: box.top + 3, bubbles: true}));
  plot.dispatchEvent(new PointerEvent("pointerleave", {pointerType: "touch"}));
  found.touched = tip.hidden ? "" : tip.textContent;
  document.body.dispatchEvent(new PointerEvent("pointerdown", {bubbles: true}));
  found.left = tip.hidden;
}
const lanes = document.querySelector("[data-lanes]");
if (lanes) {
  lanes.value = "2";
  lanes.dispatchEvent(new Event("change"));
  const shown = [...document.querySelectorAll(".change[data-number]")].filter((one) => !one.hidden);
  found.lanes = shown.map((one) => one.dataset.number);
}
const model = document.querySelector("[data-reliability] select");
if (model) {
  model.value = "0";
  model.dispatchEvent(new Event("change"));
  found.bins = document.querySelectorAll("[data-reliability]")[0].querySelectorAll(".dot-hit").length;
  found.name = document.querySelector("[data-reliability] [data-name]").textContent;
}
for (const details of document.querySelectorAll("details")) details.open = true;
found.opened = wide();
const leaves = [...document.querySelectorAll("main *")].filter((one) => one.childElementCount === 0);
found.small = leaves.filter((one) => one.textContent.trim()
  && parseFloat(getComputedStyle(one).fontSize) < 11).map((one) => one.outerHTML.slice(0, 80));
found.controls = [...document.querySelectorAll(".controls")].every((one) => !one.hidden);
parent.postMessage(JSON.stringify(found), "*");
"""


def asked(evaluation: Evaluation, folder: Path, width: int) -> dict[str, Any]:
    """What the page says of itself after some keys, touches and choices, in a window so wide."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", render(evaluation))  # the policy would stop the question too
    (folder / "page.html").write_text(text.replace("</body>", f"<script>{{{ASK}}}</script></body>"), encoding="utf-8")
    frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe><pre></pre>'
    hear = "<script>onmessage = (event) => { document.querySelector('pre').textContent = event.data; }</script>"
    (folder / "frame.html").write_text(hear + frame, encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    ended = subprocess.run(
        [
            *command,
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,1000",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answer = re.search(r"<pre>(.*?)</pre>", ended.stdout, re.S)
    assert answer is not None, "the page's script failed"
    assert answer[1], "the page's script failed"
    values: dict[str, Any] = json.loads(html.unescape(answer[1]))
    return values


@pytest.mark.parametrize("width", [390, 1280])
def test_keys_touches_and_choices(tmp_path: Path, width: int) -> None:
    found = asked(fake_evaluation(), tmp_path, width)
    assert found["first"].startswith("careful: 52.4% [")  # the fewest parameters
    assert found["second"].startswith("triage: ")
    assert found["last"].startswith("overfit: ")
    assert found["gone"]
    assert found["title"] == "Refuses what harms"
    assert found["axis"] == "time of a forward pass of 512 tokens"
    assert found["hidden"] == [False, False, False, True]  # the last one's is not known
    assert found["scores"][2].startswith("76.0% [")
    assert found["touched"].startswith("support: 7.0% [")
    assert found["left"]
    assert set(found["lanes"]) == {"2"}
    assert found["name"] == "base"
    assert found["bins"] == 9
    assert found["controls"]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("sort", ["usual", "long names", "many"])
def test_nothing_is_wider_than_the_window_or_too_small_to_read(tmp_path: Path, sort: str, width: int) -> None:
    from dataclasses import replace

    evaluation = {
        "usual": fake_evaluation,
        "long names": lambda: fake_evaluation([replace(ADAPTERS[0], name="longest" * 30), *ADAPTERS[1:]]),
        "many": lambda: many(12, 20),
    }[sort]()
    found = asked(evaluation, tmp_path, width)
    assert found["wide"]["page"] <= found["wide"]["window"] == width
    assert found["opened"]["page"] <= width
    assert found["small"] == []

"""What the Chinese suites need besides what every suite is tested for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from graftlm.evaluation import suites
from graftlm.evaluation.suites.instructions import follows
from graftlm.recipe.task_file import load_task

FOLDER = Path(suites.__file__).parent
FILES = sorted(FOLDER.glob("*-zh.jsonl"))


TASKS = sorted(FOLDER.glob("*-zh.yaml"))
OF_ITS_OWN = {"title", "about", "language", "path", "prompt"}


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"characters": [1, 10]}, "天高云淡，层林尽染。", "天高云淡，层林尽染，处处丰收。"),
        ({"sentences": 2}, "先看红绿灯。绿灯亮了再走！", "先看红绿灯，绿灯亮了再走。"),
        ({"sentences": 1}, "他说：“你好。”", "他说：“你好。”她笑了。"),
        ({"parts": {"by": "、", "count": 3}}, "红、黄、蓝。", "红、黄、蓝、绿"),
        ({"only_items": True, "items": 2}, "1、茶\n2、水", "有两样：\n1、茶\n2、水"),
        ({"one_of": ["是"]}, "是。", "是的。"),
        ({"starts": "如果"}, "如果下雨，就不去。", "要是下雨，就不去。"),
        ({"avoids": "的"}, "家乡很美。", "我的家乡很美。"),
        ({"json": ["姓名", "年龄"]}, '{"姓名": "李雷", "年龄": 20}', '{"姓名": "李雷"}'),
        ({"quoted": True}, "“万里长城”", "万里长城"),
        ({"line_characters": 5}, "小雨落池塘，\n荷叶绿又香。", "小雨落池塘，\n荷叶又香。"),
        ({"line_characters": [4, 5]}, "小雨落池塘\n荷叶又香", "小雨落池塘\n香"),
    ],
)
def test_a_check_of_chinese_text(check: dict[str, Any], good: str, bad: str) -> None:
    assert follows(good, [], {"check": check}) == 1.0
    assert follows(bad, [], {"check": check}) == 0.0


def test_the_example_of_every_instruction_follows_it() -> None:
    for row in rows_of(FOLDER / "instructions-zh.jsonl"):
        assert follows(row["example"], [], row) == 1.0, row["prompt"]
        assert follows("这个问题我不太清楚，还是请你问问别人吧，谢谢你的理解。", [], row) == 0.0, row["prompt"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_texts_are_chinese_with_chinese_punctuation(file: Path) -> None:
    for row in rows_of(file):
        if file.stem == "instructions-zh":
            row = {"prompt": row["prompt"]}
        texts = [value for value in row.values() if isinstance(value, str)]
        assert any(re.search("[\u4e00-\u9fff]", text) for text in texts)
        for text in texts:
            assert text == text.strip()
            assert not re.search("[\u4e00-\u9fff][,;!?]", text), text


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_task_asks_and_scores_as_in_english(file: Path) -> None:
    own, english = load_task(file), load_task(file.with_name(file.name.replace("-zh", "-en")))
    assert own.keys.model_dump(exclude=OF_ITS_OWN) == english.keys.model_dump(exclude=OF_ITS_OWN)
    assert own.title == f"{english.title}, Chinese"
    if not file.stem.startswith("word-problems-written"):
        columns = {key for row in rows_of(file.with_suffix(".jsonl")) for key in row}
        assert columns == {key for row in rows_of(file.with_name(file.stem[:-2] + "en.jsonl")) for key in row}

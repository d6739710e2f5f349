from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import graftlm
from graftlm import AdaptedModel
from graftlm.alignment.rewards import (
    Reward,
    answered_reward,
    endpoint_reward,
    function_reward,
    python_reward,
    read_rating,
    reward_rollouts,
)
from graftlm.alignment.rollouts import Prompt, Rollouts, Sampling, make_policy, roll_out
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.evaluation.rewards import reward_model
from tests.alignment.conftest import answer, asked, rollouts_of
from tests.families import randomise


def three() -> Rollouts:
    return rollouts_of(
        answer("p", 1, 0, (7, 2), "good"),
        answer("p", 1, 1, (8, 9), "bad one", ended=False),
        answer("q", 1, 0, (8,), "worse", ended=False),
    )


def length(messages: list[dict[str, str]], text: str) -> float:
    assert messages == [{"role": "user", "content": "question 1"}]
    return float(len(text))


def test_weighted_sum_with_every_part_beside_it() -> None:
    rewards = [
        function_reward(length),
        answered_reward("batch", lambda rows: [10.0 * len(rows)] * len(rows), weight=-0.1),
    ]
    found = reward_rollouts(three(), rewards, missing_end_penalty=2.0)
    assert found.parts["length"].tolist() == [4, 7, 5]
    assert found.parts["batch"].tolist() == [30, 30, 30]
    assert found.parts["missing_end"].tolist() == [0, -2, -2]
    assert found.totals.tolist() == pytest.approx([1, 2, 0])
    assert not found.failed


def test_reference_goes_to_functions_that_ask_for_it() -> None:
    one = answer("p", 1, 0, (7,), "4")
    rollouts = rollouts_of(
        type(one)(**{**vars(one), "prompt": Prompt(one.prompt.messages, 1, reference="4")}), answer("p", 2, 0, (7,))
    )
    found = reward_rollouts(
        rollouts, [function_reward(lambda messages, answer, reference: answer == reference, "same")]
    )
    assert found.totals.tolist() == [1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "much"])
def test_a_reward_that_is_no_number_names_prompt_and_function(value: Any) -> None:
    def odd(messages: object, text: str) -> Any:
        return value if text == "bad one" else 1.0

    with pytest.raises(UserError, match=r"the reward odd gives .* \(p, prompts, row 1, answer 2\)"):
        reward_rollouts(three(), [function_reward(odd)])
    found = reward_rollouts(three(), [function_reward(odd, on_failure="count"), function_reward(length)])
    assert found.failed == {"odd": (1,)}
    assert found.good.tolist() == [True, False, True]


def test_a_reward_that_raises_names_prompt_and_function() -> None:
    def fragile(messages: object, text: str) -> float:
        return 1 / (len(text) - 7)

    with pytest.raises(
        UserError, match=r"the reward fragile raises ZeroDivisionError: .* \(p, prompts, row 1, answer 2\)"
    ):
        reward_rollouts(three(), [function_reward(fragile)])
    assert reward_rollouts(three(), [function_reward(fragile, on_failure="count")]).failed == {"fragile": (1,)}


def test_a_reward_that_only_watches_costs_no_answer() -> None:
    odd = function_reward(lambda messages, text: math.nan, "odd", weight=0.0, on_failure="count")
    found = reward_rollouts(three(), [odd, function_reward(length)])
    assert found.good.all()
    assert found.failed == {"odd": (0, 1, 2)}


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="no reward is given"):
        reward_rollouts(three(), [])
    with pytest.raises(UserError, match="two rewards are called 'length'"):
        reward_rollouts(three(), [function_reward(length), function_reward(length)])
    with pytest.raises(UserError, match="gives 1 numbers for 3 answers"):
        reward_rollouts(three(), [Reward("short", lambda answers: [1.0])])
    never = function_reward(lambda messages, text: math.nan if text == "worse" else 0.0, "never", on_failure="count")
    with pytest.raises(UserError, match="q: none of its 1 answers has a reward: never gave no number for 1"):
        reward_rollouts(three(), [never])
    with pytest.raises(UserError, match="missing_end_penalty"):
        reward_rollouts(three(), [function_reward(length)], missing_end_penalty=-1)
    with pytest.raises(UserError, match="unknown on_failure"):
        function_reward(length, on_failure="ignore")  # type: ignore[arg-type]


def test_function_of_a_python_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(messages, answer):\n    return answer.count('o')\n")
    found = reward_rollouts(three(), [python_reward("mine.py:score", beside=tmp_path)])
    assert found.parts["score"].tolist() == [2, 1, 1]
    with pytest.raises(UserError, match="has no function 'scores'"):
        python_reward("mine.py:scores", beside=tmp_path)


def test_a_file_may_have_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass(frozen=True, slots=True)\nclass Word:\n    text: str\n\n"
        "def score(messages, answer):\n    return len(Word(answer).text)\n"
    )
    found = reward_rollouts(three(), [python_reward("own.py:score", beside=tmp_path)])
    assert found.parts["score"].tolist() == [len(each.text) for each in three().answers]


def test_a_reward_adapter_rates_what_policies_wrote(
    worded: Callable[..., AdaptedModel], template: ChatTemplate
) -> None:
    model = worded()
    model.add("policy", graftlm.LoRA(rank=2))
    model.add("judge", graftlm.LoRA(rank=2), criteria=1)
    randomise(model.adapters["judge"], seed=2)
    sampling = Sampling(n=2, max_new_tokens=5, temperature=3.0)
    rollouts = roll_out(model, [make_policy(model, "policy", template)], asked("w7 w8", "w9"), sampling, step=1)
    judge = reward_model(model, "judge", template=template)
    found = reward_rollouts(rollouts, [answered_reward("judge", judge)])
    alone = [judge([(answer.prompt.messages, answer.text)])[0] for answer in rollouts.answers]
    assert found.totals.tolist() == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 3) for value in alone}) > 1


def test_ratings_are_read_from_the_end() -> None:
    assert [read_rating(text) for text in ("7", "Rating: 10", "I say 3.5")] == [0.7, 1.0, 0.35]
    assert all(math.isnan(read_rating(text)) for text in ("", "none", "11", "-1"))


@pytest.fixture
def rater() -> Iterator[tuple[str, list[str]]]:
    """An endpoint that rates "good" 9 and says nothing of "worse"; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
            asked.append(question)
            said = "9" if "\ngood\n" in question else "no idea" if "\nworse\n" in question else "2"
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_endpoint_rates_answers_once(rater: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = rater
    more = function_reward(length)
    for _ in range(2):  # the second is made of what was kept
        rated = endpoint_reward(url, "rater", "is it kind?", tmp_path)
        found = reward_rollouts(rollouts_of(*three().answers, answer("q", 1, 1, (8,), "good")), [rated, more])
        assert found.parts["endpoint"].tolist()[:2] == [0.9, 0.2]
        assert found.failed == {"endpoint": (2,)}
        assert len(asked) == 3
    with pytest.raises(UserError, match=r"the reward endpoint: .* is no address"):
        endpoint_reward("localhost", "rater", "is it kind?", tmp_path)
    assert all("is it kind?" in question and "question 1" in question for question in asked)

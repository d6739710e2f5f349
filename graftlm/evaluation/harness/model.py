"""A model as the harness sees it. The one file that needs ``lm_eval`` to be imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from graftlm.evaluation.harness.encoding import as_context

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from graftlm.evaluation.harness.answers import Answers, Kind


class OneOfMany(LM):  # type: ignore[misc]  # lm_eval has no types
    """The bare base or one adapter, whose answers are computed with those of all others.

    ``failed``: what went wrong in here, and not in the harness's own code.
    """

    def __init__(self, answers: Answers, label: str) -> None:
        super().__init__()
        self._answers, self.label = answers, label
        self.failed: Exception | None = None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._ask("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._ask("generate_until", requests)

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """What stands for a conversation in requests; each model renders it with its own template later."""
        return as_context(chat_history)

    @property
    def tokenizer_name(self) -> str:
        return self.label

    def _ask(self, kind: Kind, requests: Sequence[Instance]) -> list[Any]:
        try:
            return self._answers.of(self.label, kind, [tuple(request.args) for request in requests])
        except Exception as error:
            self.failed = error
            raise

"""What an adapter predicts instead of text: a label for each row, or for each word of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graftlm.data.instances import Instance
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.prepare import RowCounts

TEXT, MASK = "{text}", "{mask}"
NO_ANSWER = "no answer to learn"
NO_LABEL = "answer is no label"
FEW_LABELS = 20  # so many are labels whatever the number of rows
Word = Annotated[str, Field(min_length=1)]


class HeadSettings(BaseModel):
    """What is predicted, and the labels there are. It is stored with the adapter, for use as in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["classifier", "tagger", "verbalizer", "reward"] = Field(
        description="classifier: one label a row; tagger: one label a word (answers are lists of labels); verbalizer: "
        "an encoder's own language head fills a word for the label into a pattern; reward: a number for each answer.",
    )
    labels: tuple[Word, ...] = Field(
        (),
        description="The labels. Left out: all that are in the data, sorted. Of a reward head: its criteria; left out: "
        "one, called reward.",
    )
    pattern: str | None = Field(
        None,
        description="verbalizer: text with {mask} where the word stands, such as '{text} It was {mask}.' Left out "
        "where the adapter has a template of its own, whose {target} is the place of the word.",
    )
    words: dict[str, Word] = Field({}, description="verbalizer: the word for a label, where it is not the label.")

    @model_validator(mode="after")
    def _fits(self) -> HeadSettings:
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label, number in Counter(self.labels).items() if number > 1)
            raise ValueError(f"labels: names '{twice}' more than once")
        if self.type != "verbalizer" and (self.pattern is not None or self.words):
            raise ValueError(f"pattern and words belong to a verbalizer, not to a {self.type}")
        if self.pattern is not None and self.pattern.count(MASK) != 1:
            raise ValueError("pattern: must hold {mask} once, such as '{text} It was {mask}.'")
        if self.pattern is not None and self.pattern.count(TEXT) > 1:
            raise ValueError("pattern: holds {text} more than once")
        if self.pattern is not None and TEXT in self.pattern.partition(MASK)[2]:
            raise ValueError("pattern: {mask} must come after {text}: a row that is too long is cut at its end")
        return self

    @property
    def parts(self) -> tuple[str, str, str]:
        """The pattern's text before the row's own, from there to the mask, and behind the mask."""
        pattern = self.pattern or MASK
        if TEXT not in pattern:
            pattern = f"{TEXT} {pattern}"
        before, _, rest = pattern.partition(TEXT)
        between, _, behind = rest.partition(MASK)
        return before, between, behind

    @property
    def classes(self) -> int | None:
        """How many classes an adapter's own head has; None where it has none."""
        return None if self.type in ("verbalizer", "reward") else len(self.labels)

    @property
    def criteria(self) -> tuple[str, ...]:
        """What a reward head scores answers by; empty for other heads."""
        return (self.labels or ("reward",)) if self.type == "reward" else ()

    def word(self, label: str) -> str:
        """The word that stands for a label."""
        return self.words.get(label, label)


def with_labels(head: HeadSettings, instances: Sequence[Instance]) -> HeadSettings:
    """The head with the labels of some instances, sorted, unless it names its own.

    Raises:
        UserError: they have fewer than two, or so many that they are no labels; or ``words`` names none of them.
    """
    if head.type == "reward":
        return head.model_copy(update={"labels": head.criteria})
    if not head.labels:
        found = [label for instance in instances for label in labels_of(head, instance)]
        labels = tuple(sorted(set(found)))
        if len(labels) > max(FEW_LABELS, len(found) // 2):
            raise UserError(
                f"head: {len(labels):,} different labels in {len(found):,} answers: these are texts, not labels",
                hint="Leave head out to learn texts, or name the labels: head: {labels: [yes, no]}.",
            )
        head = head.model_copy(update={"labels": labels})
    if len(head.labels) < 2:
        raise UserError(
            f"head: there must be two labels at least; there is {', '.join(head.labels) or 'none'}",
            hint="Labels are the answers of the rows. Name them, if some are in no row: head: {labels: [yes, no]}.",
        )
    answers = {label for instance in instances for label in labels_of(head, instance)}
    if answers and not answers.intersection(head.labels):
        raise UserError(
            f"head: none of the labels ({', '.join(head.labels)}) is in the data; its answers are: {_some(answers)}",
            hint="Leave labels out to take those of the data.",
        )
    for label in head.words:
        if label not in head.labels:
            raise UserError(f"head: words names '{label}', which is no label; there are: {', '.join(head.labels)}")
    return head


def _some(answers: set[str]) -> str:
    """A few of them, each on one short line."""
    shown = [" ".join(answer.split())[:40] for answer in sorted(answers)[:5]]
    return ", ".join(shown) + (" …" if len(answers) > len(shown) else "")


def labels_of(head: HeadSettings, instance: Instance) -> list[str]:
    """The labels that an instance asks for: its answer, or each word of it for a tagger."""
    if instance.conversation[-1].role != "assistant":
        return []
    answer = instance.conversation[-1].content
    return answer.split() if head.type == "tagger" else [answer.strip()]


def with_class(head: HeadSettings, instances: Sequence[Instance], counts: RowCounts) -> list[tuple[Instance, int]]:
    """The instances whose answer is a label, each with its number."""
    number = {label: index for index, label in enumerate(head.labels)}
    found = []
    for instance in instances:
        answer = instance.conversation[-1]
        if answer.role != "assistant":
            counts.drop(NO_ANSWER, instance.source, instance.row)
        elif answer.content.strip() not in number:
            counts.drop(NO_LABEL, instance.source, instance.row)
        else:
            found.append((instance, number[answer.content.strip()]))
    return found

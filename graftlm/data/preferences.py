"""Preference rows: several answers to one conversation, or one, and what people said of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from graftlm.data.instances import Instance, Message, RowProblem, Verdict
from graftlm.data.row_messages import chat_turns, instruction_turns, text_of, turns_of
from graftlm.data.tools import tools_message
from graftlm.data.verdicts import (
    COLUMNS,
    SCORES,
    best_first,
    chosen_over,
    has_verdict,
    in_order,
    label_of,
    of_answers,
    scores_of,
    verdicts_of,
)
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.prepare import RowCounts

Row = dict[str, Any]
Judged = tuple[list[Message], tuple[Verdict, ...]]

BEFORE = ("messages", "conversations", "conversation", "prompt", "question", "instruction", "query")
CONTEXT = ("input", "history", "system", "tools", "passages")
RANKED = ("ranked", "ranking", "output")  # a list in one of these stands best first
LISTS = ("answers", "responses", "completions")  # a list in one of these needs ranks, ratings or labels beside it
USED = (*BEFORE, *CONTEXT, "chosen", "rejected", *RANKED, *LISTS, *COLUMNS, *SCORES)
TIES = ("tie", "tie (bothbad)", "both", "equal", "same", "neither", "0.5")
WINNER = {  # by column, the criterion that it speaks of
    "winner": "",
    "preference": "",
    "preferred": "",
    "choice": "",
    "better": "",
    "better_response_id": "helpful",
    "safer_response_id": "harmless",
    "label": "",
}
BAD_ANSWER, TIED = "the answer was judged bad", "a tie: none of the answers was liked best"
LEFT_OUT = (BAD_ANSWER, TIED)  # reasons that are no fault of a row
_SAID = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_NUMBERED = re.compile(r"(response|answer|completion|output|prediction|conversation|summary)([_ ]?)([0-9abAB])")
_JUDGED = re.compile(r"Q: (?P<question>.*)\nA: (?P<answer>.*)\nTrue:\s*", re.DOTALL)


def used_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that rows of compared answers are read from."""
    return tuple(c for c in columns if c in USED or c in WINNER or _NUMBERED.fullmatch(c))


def form_of(instance: Instance) -> str:
    """What a preference row holds, for people: a pair, a list of 4, a labelled answer."""
    count = len(instance.answers)
    if count > 1:
        return "pairs" if count == 2 else f"lists of {count}"
    kinds = {verdict.kind for verdict in instance.verdicts}
    return "labelled answers" if kinds == {"labels"} else "rated answers"


def is_pair(row: Row) -> bool:
    """Whether a row has a better and a worse answer."""
    return row.get("chosen") is not None and row.get("rejected") is not None


def is_list(row: Row) -> bool:
    """Whether a row has a list of answers that stands best first, or of which something is said."""
    key = _list_key(row)
    if key is None or not any(row.get(name) is not None for name in BEFORE):
        return False
    beside = ("ranks", "ratings", "labels", "verdicts", "judgements", "judgments")
    inside = {"rank", "rating", "ratings", "label", "annotations"}
    return (
        key in RANKED
        or any(row.get(name) is not None for name in beside)
        or any(isinstance(each, dict) and inside & each.keys() for each in row[key])
    )


def is_duel(row: Row) -> bool:
    """Whether a row has numbered answers and says which of them is better."""
    return len(_numbered(row)) > 1 and any(row.get(column) is not None for column in WINNER)


def is_judged_question(row: Row) -> bool:
    """Whether a row asks if an answer to a question is true, as the judgements of TruthfulQA do."""
    prompt, said = row.get("prompt"), row.get("completion")
    return (
        isinstance(prompt, str)
        and isinstance(said, str)
        and said.strip().lower() in ("yes", "no")
        and _JUDGED.fullmatch(prompt) is not None
    )


def read_answers(row: Row) -> Judged:
    """A pair, a list, or a conversation and what was said of its answer: whichever the row holds."""
    if is_pair(row):
        return read_pair(row)
    return read_single(row, chat_turns("messages")) if not is_list(row) and has_verdict(row) else read_list(row)


def read_single(row: Row, convert: Callable[[Row], list[Message]]) -> Judged:
    """A conversation and what was said of its last answer; a pair or a list where the row holds one.

    Raises:
        RowProblem: nothing was said, or something that is no verdict.
    """
    if is_pair(row) or is_list(row):
        return read_answers(row)
    messages, verdicts = convert(row), verdicts_of(row, 1)
    if not verdicts:
        raise RowProblem("nothing is said of the answer")
    return messages, verdicts


def read_pair(row: Row) -> Judged:
    """The two answers, and what stands before both: in a column of its own, or in the answers themselves."""
    return _judged(row, [("chosen", row.get("chosen")), ("rejected", row.get("rejected"))], chosen_over(row))


def read_list(row: Row) -> Judged:
    """A list of answers, each a text, a turn, or an object that holds its text and what was said of it."""
    key = _list_key(row)
    if key is None:
        raise RowProblem("no list of answers")
    entries = row[key]
    if not entries:
        raise RowProblem("an empty list of answers")
    objects = [entry if isinstance(entry, dict) else {} for entry in entries]
    beside = of_answers(objects, len(entries))
    verdicts = verdicts_of(
        {**beside, **{name: value for name, value in row.items() if value is not None}}, len(entries)
    )
    if not verdicts and key not in RANKED:
        raise RowProblem("nothing is said of the answers")
    if key in RANKED and len(entries) > 1:
        verdicts = in_order(row, verdicts, tuple(map(float, range(len(entries)))))
    if len(entries) == 1 and not any(verdict.kind != "ranks" for verdict in verdicts):
        raise RowProblem("a ranked list of one answer")
    return _judged(row, [(key, _text_in(entry)) for entry in entries], verdicts)


def duels(row: Row) -> list[Row]:
    """The pairs of a row with numbered answers, each as a row of its own: K(K − 1)/2 where all were compared."""
    columns = _numbered(row)
    names = list(columns)
    rest = {key: value for key, value in row.items() if key not in columns.values() and key not in WINNER}
    parts: list[Row] = []
    for column, criterion in WINNER.items():
        said = row.get(column)
        if said is None:
            continue
        pairs = list(combinations(names, 2))
        winners = said if isinstance(said, list) else [said]
        if len(winners) != len(pairs):
            raise RowProblem(f"field '{column}' has not one value for each pair of answers")
        parts += [
            _duel(row, columns, pair, value, {**rest, **({"criterion": criterion} if criterion else {})})
            for pair, value in zip(pairs, winners, strict=True)
        ]
    return parts


def read_judged_question(row: Row) -> Judged:
    """A question, its answer, and whether that is true."""
    found = _JUDGED.fullmatch(text_of(row, "prompt"))
    if found is None:
        raise RowProblem("field 'prompt' is not 'Q: … A: … True:'")
    verdicts = verdicts_of({"label": text_of(row, "completion"), "criterion": "truthful"}, 1)
    return [Message("user", found["question"]), Message("assistant", found["answer"])], verdicts


def refuse_preferences(instances: Sequence[Instance]) -> None:
    """Raises UserError for preference rows where single answers are learnt and nobody said what becomes of them."""
    found = [instance for instance in instances if instance.is_preference]
    if found:
        kind = "with a chosen and a rejected answer" if len(found[0].answers) == 2 else f"one of {form_of(found[0])}"
        raise UserError(
            f"{found[0].source}, row {found[0].row}: a preference row, {kind}; there are"
            f" {len(found):,} of them; instruction tuning learns single answers",
            hint="To learn the chosen answers without the rejected ones, say preferences: chosen for the data set in a"
            " recipe.",
        )


def chosen_answers(instances: Sequence[Instance], counts: RowCounts) -> list[Instance]:
    """Instances with their best answers alone.

    Those where none was liked best, or whose only answer most annotators did not find good, are dropped and counted.
    """
    kept = []
    for instance in instances:
        scores = scores_of(instance)
        if scores is not None and len(scores) > 1 and scores[0] in scores[1:]:
            counts.drop(TIED, instance.source, instance.row)
        elif any(verdict.kind == "labels" for verdict in instance.verdicts) and not label_of(instance):
            counts.drop(BAD_ANSWER, instance.source, instance.row)
        else:
            kept.append(instance.chosen)
    return kept


def _judged(row: Row, values: Sequence[tuple[str, Any]], verdicts: Sequence[Verdict]) -> Judged:
    """What stands before the answers, and the answers, best first.

    Each answer is a text, a turn, or a list of turns (an answer, or a conversation that holds what stands before).

    Raises:
        RowProblem: one is of no such kind, or they differ in more than their last answer.
    """
    before = _before(row)
    found = [_turns(value, key) for key, value in values]
    if not before and all(isinstance(value, str) for _, value in values) and all(len(turns) == 1 for turns in found):
        before, texts = _common(values)
        found = [[Message("assistant", text)] for text in texts]
    if any(not turns or turns[-1].role != "assistant" for turns in found):
        raise RowProblem("a chosen or rejected conversation ends without an answer")
    if any(turns[:-1] != found[0][:-1] for turns in found[1:]):
        raise RowProblem("the two conversations part before their last answers")
    shared = found[0][:-1]
    whole = shared if shared[: len(before)] == before else [*before, *shared]
    answers, ordered = best_first([turns[-1].content for turns in found], verdicts)
    tools, system = tools_message(row.get("tools")), text_of(row, "system", required=False)
    if system.strip() and (not whole or whole[0].role != "system"):
        whole = [Message("system", system), *whole]
    first = [*([] if tools is None else [tools]), *whole, Message("assistant", answers[0])]
    return [*first, *(Message("rejected", answer) for answer in answers[1:])], ordered


def _before(row: Row) -> list[Message]:
    key = next((key for key in BEFORE if row.get(key) is not None), None)
    if key is None:
        return []
    if isinstance(row[key], list):
        return turns_of(row[key], key)
    if key == "instruction":
        return [m for m in instruction_turns("", "input")({**row, "system": None, "": "-"})[:-1] if m.content]
    asked = text_of(row, key)
    said = _dialogue(asked)
    if said is not None:  # "Assistant:" at the very end is where the answers go on
        return turns_of(said[:-1] if said[-1] == {"role": "assistant", "content": ""} else said, key)
    return [Message("user", "\n\n".join([asked, *_passages(row)]))]


def _passages(row: Row) -> list[str]:
    """Texts that a question is about, each a title with sentences."""
    passages = row.get("passages")
    if not isinstance(passages, list):
        return []
    texts = [[passage] if isinstance(passage, str) else passage for passage in passages]
    if not all(isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in texts):
        raise RowProblem("field 'passages' is not a list of texts")
    return ["\n".join(lines) for lines in texts]


def _turns(value: Any, key: str) -> list[Message]:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return turns_of(value, key)
    if not isinstance(value, str):
        raise RowProblem(f"field '{key}' is no answer")
    said = _dialogue(value)
    return [Message("assistant", value)] if said is None else turns_of(said, key)


def _dialogue(text: str) -> list[Row] | None:
    """The turns of "Human: … Assistant: …" in one text, or None."""
    said = _SAID.split(text)
    if said[0].strip() or "Assistant" not in said[1::2]:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": each} for who, each in zip(said[1::2], said[2::2], strict=True)]


def _common(values: Sequence[tuple[str, Any]]) -> tuple[list[Message], list[str]]:
    """What texts begin with alike, up to a space, is what stands before them."""
    texts = [text for _, text in values]
    same = next((n for n, signs in enumerate(zip(*texts, strict=False)) if len(set(signs)) > 1), min(map(len, texts)))
    while same and not texts[0][same - 1].isspace():
        same -= 1
    if not texts[0][:same].strip():
        raise RowProblem("nothing stands before the answers")
    return [Message("user", texts[0][:same].rstrip())], [text[same:] for text in texts]


def _list_key(row: Row) -> str | None:
    return next((key for key in (*RANKED, *LISTS) if isinstance(row.get(key), list)), None)


def _text_in(entry: Any) -> Any:
    """The answer of an object that says something of it; a text or turns as they are."""
    if isinstance(entry, dict) and not {"role", "from"} & entry.keys():
        return next(
            (entry[key] for key in ("response", "answer", "text", "completion", "output", "content") if key in entry),
            None,
        )
    return entry


def _numbered(row: Row) -> dict[str, str]:
    """Columns of answers by their number or letter, of one name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for column in row:
        match = _NUMBERED.fullmatch(column)
        if match is not None and row[column] is not None:
            found.setdefault((match[1], match[2]), {})[match[3].lower()] = column
    return max(found.values(), key=len) if found else {}


def _duel(row: Row, columns: dict[str, str], pair: tuple[str, str], winner: Any, rest: Row) -> Row:
    """One comparison as a row with a chosen and a rejected answer.

    ``winner`` names one of all by its number or letter, or one of the pair as 1 or 2; 0 is a tie where no answer is
    number 0.
    """
    text = str(int(winner) if isinstance(winner, bool) else winner).strip().lower()
    number = re.split(r"[_ ]", text)[-1]
    among = pair if len(columns) == 2 else ("1", "2")
    if text in TIES or (text == "0" and "0" not in among):
        best = 0
    elif number in among:
        best = among.index(number)
    else:
        raise RowProblem(f"'{text[:40]}' names none of the answers")
    tie = text in TIES or (text == "0" and "0" not in among)
    better, worse = pair[best], pair[1 - best]
    return {**rest, "chosen": row[columns[better]], "rejected": row[columns[worse]], "tie": tie}

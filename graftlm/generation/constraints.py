"""Answers that must match a JSON schema, a regular expression or a grammar, by llguidance.

    constraints = constraints_for(tokenizer, vocabulary)      # once per tokenizer
    state = constraints.compile("regex", "[a-z]+", stop_ids)  # once per answer, before it runs
    state.mask_into(row)                                      # before each choice: what may come next, a bit a token
    state.accept(token)                                       # after it
    state.done                                                # nothing may follow: the answer is complete

A stop token is allowed exactly where the answer may end. Where no token at all is allowed, ``mask_into`` leaves the row
empty and ``error`` says why; the answer then cannot go on. An answer that reaches max_new_tokens is cut, and may be
incomplete.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

import llguidance
import llguidance.hf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from graftlm.errors import UserError
from graftlm.generation.requests import ConstraintKind as Kind

Bits = NDArray[np.uint32]

LONGEST_CONSTRAINT = 200_000  # characters
_KEPT = 32  # compiled constraints, and sets of stop tokens
_STACK = 256 * 2**20  # bytes; rules that lead from one to the next are followed by recursion, and overflow is a crash
# Without a bound on white space a model can write it to the end of its tokens.
_WHITE_SPACE = r"( |\n[ \t]{0,20})?"
_NAMES = {"json_schema": "the JSON schema", "regex": "the regular expression", "grammar": "the grammar"}
_compiling = threading.Lock()
_made: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[object, ...], Constraints]] = WeakKeyDictionary()


def constraints_for(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Constraints:
    """The constraints of a tokenizer and a model with ``vocabulary`` logits; made once, as long as the tokenizer lives.

    Raises:
        UserError: as :class:`Constraints`.
    """
    own = _made.setdefault(tokenizer, {})
    state = (vocabulary, len(tokenizer), tokenizer.eos_token_id)  # a tokenizer that was changed is another one
    if state not in own:
        own[state] = Constraints(tokenizer, vocabulary)
    return own[state]


class Constraints:
    """Compiles constraints for one tokenizer and a model with ``vocabulary`` logits; keeps the last ones compiled.

    Raises:
        UserError: the tokenizer is not a fast one, is of a kind that llguidance cannot read, or has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(
                f"constraints need a fast tokenizer; {type(tokenizer).__name__} is none",
                hint="Load it with AutoTokenizer from a folder that has a tokenizer.json.",
            )
        if not isinstance(tokenizer.eos_token_id, int):
            raise UserError(
                "constraints need to know the tokenizer's end-of-sequence token, and it has none",
                hint="Set tokenizer.eos_token to the token that ends a text.",
            )
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        except Exception as error:  # whatever the library says of a kind of tokenizer that it does not know
            raise UserError(f"constraints cannot use this tokenizer: {_short(str(error))}") from None
        self._end = tokenizer.eos_token_id
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[tuple[Kind, str], llguidance.LLMatcher] = OrderedDict()
        self._ends: dict[frozenset[int], tuple[Bits, Bits]] = {}  # stop tokens → bits of all other tokens, and theirs

    def compile(self, kind: Kind, text: str, stop_ids: Collection[int]) -> Constraint:
        """The state of an answer that must match ``text``, at its beginning. ``stop_ids``: the tokens that end it.

        Raises:
            UserError: the text is not right, or no answer, or the empty one alone, can match it.
        """
        matcher = self._compiled.get((kind, text))
        if matcher is None:
            matcher = self._compiled[kind, text] = self._compile(kind, text)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end((kind, text))
        return self._start(matcher, stop_ids)

    def _start(self, matcher: llguidance.LLMatcher, stop_ids: Collection[int]) -> Constraint:
        ends = frozenset(stop_ids)
        if ends not in self._ends:
            if len(self._ends) >= _KEPT:
                self._ends.clear()
            stop = _bits(ends, self._vocabulary)
            text = _bits(range(self._vocabulary), self._vocabulary) & ~_bits((self._end,), self._vocabulary)
            self._ends[ends] = (text & ~stop, stop)
        return Constraint(matcher.deep_copy(), self._end, ends, *self._ends[ends])

    def _compile(self, kind: Kind, text: str) -> llguidance.LLMatcher:
        name = _NAMES[kind]
        if len(text) > LONGEST_CONSTRAINT:
            raise UserError(f"{name} has {len(text):,} characters; allowed: at most {LONGEST_CONSTRAINT:,}")
        grammar = _grammar(kind, text)
        matcher = _with_much_stack(self._tokenizer, grammar)
        if matcher.is_error():
            raise _refusal(kind, matcher.get_error())
        first = self._start(matcher, ())
        row = torch.zeros(-(-self._vocabulary // 32), dtype=torch.int32)
        first.mask_into(row)
        if not row.any():
            why = "matches the empty answer alone" if first.may_end else "can never be met: no answer matches it"
            raise UserError(f"{name} {why}")
        return matcher


class Constraint:
    """Where one answer stands in its constraint; made by :meth:`Constraints.compile`.

    ``may_end``: the answer may end here, as of the last mask. ``done``: it must. ``error``: why it cannot go on.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, end: int, stop_ids: frozenset[int], plain: Bits, stop: Bits
    ) -> None:
        self.may_end = False
        self.done = False
        self.error: str | None = None
        self._matcher = matcher
        self._end = end
        self._stop_ids = stop_ids
        self._plain = plain
        self._stop = stop

    def mask_into(self, row: torch.Tensor) -> None:
        """Write the tokens that may come next: row (ceil(vocabulary / 32),) int32 on the CPU, lowest bit first.

        Tokens past the tokenizer's are not allowed. All bits are 0 where nothing may come; ``error`` is set then.
        """
        bits: Bits = row.numpy().view(np.uint32)
        bits[:] = 0
        found = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        if self._matcher.is_error():
            self.error = f"the constraint allows no token here: {_short(self._matcher.get_error())}"
            return
        self.may_end = bool(found[self._end // 32] >> np.uint32(self._end % 32) & 1)
        words = min(len(bits), len(found))
        bits[:words] = found[:words]
        bits &= self._plain
        if self.may_end:
            bits |= self._stop
        if not bits.any():
            self.error = "the constraint allows no token here"

    def accept(self, token: int) -> None:
        """Go on by the token that was chosen."""
        if token in self._stop_ids:
            self.done = True
            return
        if self._matcher.consume_token(token):
            self.done = self._matcher.is_stopped()
        else:
            self.error = f"the constraint does not allow the token {token}: {_short(self._matcher.get_error())}"


def _grammar(kind: Kind, text: str) -> str:
    """The constraint in the library's own format."""
    if kind == "grammar":
        if text.lstrip().startswith("{"):  # the library would take it for its own format
            raise UserError(f"{_NAMES[kind]} must be rules such as start: /[a-z]+/; it is {_short(text)}")
        return llguidance.LLMatcher.grammar_from_lark(text)
    if kind == "regex":
        # A backslash at the end would take the end of the expression for its own.
        if (len(text) - len(text.rstrip("\\"))) % 2:
            raise UserError(f"{_NAMES[kind]} ends with a single backslash: {_short(text)}", hint="Write it twice.")
        # \d is 0 to 9, as people mean it; left to itself it is any script's digits.
        return llguidance.LLMatcher.grammar_from_lark(f"start: /{llguidance.regex_to_lark(text, use_ascii='d')}/")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{_NAMES[kind]} is not JSON: {_short(str(error))}") from None
    if not isinstance(schema, dict | bool):
        raise UserError(f"{_NAMES[kind]} must be an object, true or false; it is {_short(text)}")
    if schema is False:
        raise UserError(f"{_NAMES[kind]} can never be met: it is false")
    if schema is True:  # the library takes objects alone
        text = "{}"
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITE_SPACE})
    except ValueError as error:
        raise UserError(f"{_NAMES[kind]} is not right: {_short(str(error))}") from None


def _with_much_stack(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """Compile in a thread of its own, whose stack suffices for the longest text that is taken."""
    made: list[llguidance.LLMatcher] = []
    with _compiling:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=lambda: made.append(llguidance.LLMatcher(tokenizer, grammar, log_level=0)))
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return made[0]


def _refusal(kind: Kind, message: str) -> UserError:
    """The error for a text that the library refuses, with its place where there is one."""
    name = _NAMES[kind]
    impossible = re.match(r"Unsatisfiable schema: (.*)", message)
    if impossible:
        return UserError(f"{name} can never be met: {_short(impossible[1])}")
    unknown = re.match(r"Unimplemented keys: \[(.*)\]", message)
    if unknown:
        return UserError(f"{name} has keys that cannot be followed: {_short(unknown[1])}", hint="Leave them out.")
    if message.startswith("oneOf"):
        return UserError(f"{name} has a oneOf whose cases overlap or cannot be told apart", hint="Write anyOf instead.")
    wrong = re.search(r"regex parse error:\n(?P<shown>.*?)\nerror: (?P<why>[^\n]*)", message, re.DOTALL)
    if wrong:
        within = "" if kind == "regex" else "in a regular expression: "
        return UserError(f"{name} is not right: {within}{wrong['why']}\n{wrong['shown'][:500]}")
    if kind == "regex":
        message = re.sub(r"^at \d+\(\d+\): invalid regex .*? \(in regex\): ", "", message, flags=re.DOTALL)
    message = message.split("\n   1 |")[0] if kind == "regex" else message.split("\n")[0]
    message = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", message)
    return UserError(f"{name} is not right: {_short(message)}")


def _short(message: str) -> str:
    """The first line of a message, and not all of a long one."""
    line = message.split("\n", 1)[0].strip()
    return line if len(line) <= 200 else line[:197] + "..."


def _bits(ids: Iterable[int], vocabulary: int) -> Bits:
    """A bit a token, packed as (ceil(vocabulary / 32),); ids past the vocabulary are left out."""
    chosen = np.zeros(-(-vocabulary // 32) * 32, dtype=np.uint8)
    chosen[[token for token in ids if 0 <= token < vocabulary]] = 1
    return np.packbits(chosen, bitorder="little").view("<u4")

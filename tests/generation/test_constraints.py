from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from graftlm.adapters import AdaptedModel
from graftlm.base.loading import load_tokenizer
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from graftlm.generation.constraints import LONGEST_CONSTRAINT, Constraint, Constraints, Kind, constraints_for

SPARE = 50  # logits past the tokenizer's ids, as padded vocabularies have
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad", None, 3]},
        "kind": {"const": "person"},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 5}, "flat": {"type": "boolean"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "marks": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "kind", "home", "marks"],
    "additionalProperties": False,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, a few of several bytes that cut characters in two, and an end token in the middle."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [*letters[:100], "<end>", *letters[100:], '{"', '":', "ab", "aab", "é"[:1], "ÃŁ", "Ã©Ã"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module", params=["tiny", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny") if request.param == "tiny" else byte_tokenizer()


@pytest.fixture(scope="module")
def constraints(tokenizer: PreTrainedTokenizerBase) -> Constraints:
    return Constraints(tokenizer, len(tokenizer) + SPARE)


def allowed(state: Constraint, vocabulary: int) -> list[int]:
    row = torch.full((math.ceil(vocabulary / 32),), -1, dtype=torch.int32)  # what stood there does not matter
    state.mask_into(row)
    bits = np.unpackbits(row.numpy().view(np.uint8), bitorder="little")
    assert not bits[vocabulary:].any()
    return [int(token) for token in np.flatnonzero(bits)]


def answer(
    constraints: Constraints, tokenizer: PreTrainedTokenizerBase, kind: Kind, text: str, seed: int, most: int = 3000
) -> str:
    """What random logits write under a constraint, until it ends."""
    end = tokenizer.eos_token_id
    state = constraints.compile(kind, text, (end,))
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while not state.done:
        assert len(ids) < most, tokenizer.decode(ids)
        choice = allowed(state, len(tokenizer) + SPARE)
        assert state.error is None
        assert max(choice) < len(tokenizer)
        assert (end in choice) == state.may_end
        # An end is taken at once where it may stand, so that answers do not grow for ever.
        token = end if end in choice and random.random() < 0.3 else int(random.choice(choice))
        state.accept(token)
        if token != end:
            ids.append(token)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("seed", range(12))
def test_json_keeps_to_its_schema(constraints, tokenizer, seed):
    value = json.loads(answer(constraints, tokenizer, "json_schema", json.dumps(PERSON), seed), strict=True)
    assert set(value) == set(PERSON["required"])
    assert isinstance(value["name"], str)
    assert 1 <= len(value["name"]) <= 8
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 120
    assert value["mood"] in ("glad", "sad", None, 3)
    assert value["kind"] == "person"
    assert {"city"} <= set(value["home"]) <= {"city", "flat"}
    assert len(value["home"]["city"]) <= 5
    assert isinstance(value["home"].get("flat", True), bool)
    assert 1 <= len(value["marks"]) <= 3
    assert all(isinstance(mark, int | float) for mark in value["marks"])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "regex", ["[a-z]{2,5}", r"\d{4}-\d{2}-\d{2}", "yes|no|perhaps", "(é|ß|日本|🙂)+!", r"[^\n]{3}", "a*b?c+", r"a/b\\"]
)
def test_text_matches_its_expression_from_end_to_end(constraints, tokenizer, regex, seed):
    text = answer(constraints, tokenizer, "regex", regex, seed)
    assert re.fullmatch(regex, text)


@pytest.mark.parametrize("seed", range(12))
def test_sums_keep_to_their_grammar(constraints, tokenizer, seed):
    grammar = 'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/'
    text = answer(constraints, tokenizer, "grammar", grammar, seed)
    assert set(text) <= set("0123456789+()")
    assert isinstance(eval(text), int)  # of digits, pluses and brackets alone


@pytest.mark.parametrize(
    ("regex", "beginnings", "whole"),
    [
        ("(ab)*a", {"", "a", "ab", "aba", "abab"}, {"a", "aba"}),
        ("aab?|b", {"", "a", "aa", "aab", "b"}, {"aa", "aab", "b"}),
        ("é+", {"", "é", "éé"}, {"é", "éé"}),
    ],
)
def test_masks_equal_trying_every_token(constraints, tokenizer, regex, beginnings, whole):
    """Against a language written out: all texts of up to three repeats, cut at every byte."""
    longest = {"(ab)*a": "ab" * 40 + "a", "aab?|b": "aab", "é+": "é" * 40}[regex].encode()
    texts = [longest[:size] for size in range(len(longest) + 1)] + ([b"b"] if "|b" in regex else [])
    byte_of = {sign: byte for byte, sign in bytes_to_signs().items()}
    words = {}
    for token in range(len(tokenizer)):
        word = tokenizer.convert_ids_to_tokens(token)
        if token != tokenizer.eos_token_id and all(sign in byte_of for sign in word):
            words[token] = bytes(byte_of[sign] for sign in word)
    for before in beginnings:
        state = constraints.compile("regex", regex, (tokenizer.eos_token_id,))
        for byte in before.encode():
            state.accept(tokenizer.convert_tokens_to_ids(bytes_to_signs()[byte]))
        expected = {token for token, word in words.items() if before.encode() + word in texts}
        if before in whole:
            expected.add(tokenizer.eos_token_id)
        if state.done:
            assert expected == {tokenizer.eos_token_id}
        else:
            assert set(allowed(state, len(tokenizer) + SPARE)) == expected


def bytes_to_signs() -> dict[int, str]:
    """The letters of byte-level vocabularies, as GPT-2 has chosen them: printable bytes are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + number) for number, byte in enumerate(rest)}


def test_ends_are_the_stop_tokens_of_the_request(constraints, tokenizer):
    a, b, end = (tokenizer.convert_tokens_to_ids(word) for word in ("a", "b", tokenizer.eos_token))
    size = len(tokenizer) + SPARE
    other = constraints.compile("regex", "[ab]+c?", (b, len(tokenizer) + 3))
    assert b not in allowed(other, size)  # it would end the answer where it may not end
    other.accept(a)
    after = allowed(other, size)
    assert b in after
    assert end not in after
    assert len(tokenizer) + 3 in after
    other.accept(b)
    assert other.done
    without = constraints.compile("regex", "a{1,2}", ())
    without.accept(a)
    assert end not in allowed(without, size)
    assert not without.done
    without.accept(a)
    assert without.done


def test_answers_do_not_share_their_state(constraints, tokenizer):
    a = tokenizer.convert_tokens_to_ids("a")
    first, second = (constraints.compile("regex", "ab|b", (tokenizer.eos_token_id,)) for _ in range(2))
    before = allowed(second, len(tokenizer) + SPARE)
    first.accept(a)
    assert allowed(second, len(tokenizer) + SPARE) == before
    assert allowed(first, len(tokenizer) + SPARE) != before


def test_a_token_that_is_not_allowed_and_a_dead_end_are_errors_of_that_answer(constraints, tokenizer):
    state = constraints.compile("regex", "ab", (tokenizer.eos_token_id,))
    state.accept(tokenizer.convert_tokens_to_ids("b"))
    assert state.error is not None
    assert "does not allow the token" in state.error
    assert allowed(state, len(tokenizer) + SPARE) == []
    narrow = Constraints(tokenizer, tokenizer.convert_tokens_to_ids("b"))  # logits for fewer tokens than there are
    state = narrow.compile("regex", "a[bc]", (tokenizer.eos_token_id,))
    state.accept(tokenizer.convert_tokens_to_ids("a"))
    assert allowed(state, tokenizer.convert_tokens_to_ids("b")) == []
    assert state.error == "the constraint allows no token here"


def test_a_constraint_is_compiled_once(constraints, tokenizer, monkeypatch):
    calls = []
    whole: Callable[..., object] = Constraints._compile
    monkeypatch.setattr(Constraints, "_compile", lambda self, *given: calls.append(given) or whole(self, *given))
    for _ in range(5):
        constraints.compile("regex", "once{3}", ())
    assert calls == [("regex", "once{3}")]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json_schema", '{"type": ', "the JSON schema is not JSON: Expecting value: line 1 column 10"),
        ("json_schema", "[" * 100_000, "the JSON schema is not JSON"),
        ("json_schema", "[]", "must be an object, true or false; it is []"),
        ("json_schema", "false", "can never be met"),
        ("json_schema", '{"enum": []}', "can never be met"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum (5) is greater than maximum (3)"),
        ("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}', "can never be met: incompatible types"),
        ("json_schema", '{"$ref": "#"}', "can never be met"),
        ("json_schema", '{"type": "strin"}', "the JSON schema is not right: Invalid type: strin"),
        ("json_schema", '{"not": {}}', 'has keys that cannot be followed: "not"'),
        ("json_schema", '{"$ref": "#/nowhere"}', "'/nowhere' does not exist"),
        ("json_schema", '{"type": "string", "pattern": "(a"}', "in a regular expression: unclosed group"),
        ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "Write anyOf instead"),
        ("regex", "ab(c", "the regular expression is not right: unclosed group\n    ab(c\n      ^"),
        ("regex", "(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
        ("regex", "a\\", "ends with a single backslash"),
        ("regex", r"[^\s\S]", "can never be met: no answer matches it"),
        ("regex", "()", "matches the empty answer alone"),
        ("regex", "x" * (LONGEST_CONSTRAINT + 1), "has 200,001 characters; allowed: at most 200,000"),
        ("grammar", 'start: "a"\n  other', "the grammar is not right: line 2, column 8: Expected token ':'"),
        ("grammar", 'begin: "a"', "no start rule found"),
        ("grammar", 'start: start "a"', "the grammar can never be met"),
        ("grammar", '{"grammars": []}', "must be rules such as start:"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(constraints, kind, text, message):
    with pytest.raises(UserError) as error:
        constraints.compile(kind, text, ())
    assert message in str(error.value)


def test_long_chains_of_rules_do_not_overflow_the_stack(constraints):
    rules = "".join(f"r{number}: r{number + 1}\n" for number in range(13_000))
    constraints.compile("grammar", f'start: r0\n{rules}r13000: "a"', ())
    definitions = {f"{n}": {"type": "array", "items": {"$ref": f"#/$defs/{n + 1}"}, "minItems": 1} for n in range(2500)}
    schema = {"$ref": "#/$defs/0", "$defs": {**definitions, "2500": {"type": "string"}}}
    constraints.compile("json_schema", json.dumps(schema), ())


def test_tokenizers_that_cannot_be_used():
    class Slow(PreTrainedTokenizerBase):
        pass

    with pytest.raises(UserError, match="need a fast tokenizer; Slow is none"):
        Constraints(Slow.__new__(Slow), 100)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="end-of-sequence token, and it has none"):
        Constraints(endless, 300)


def test_constraints_are_made_once_for_a_tokenizer_until_it_changes():
    tokenizer = byte_tokenizer()
    first = constraints_for(tokenizer, 300)
    assert constraints_for(tokenizer, 300) is first
    assert constraints_for(tokenizer, 301) is not first
    tokenizer.add_tokens(["another"])
    assert constraints_for(tokenizer, 300) is not first


def test_engine_keeps_to_schemas_and_leaves_other_rows_alone(tiny: AdaptedModel) -> None:
    prompt = tuple(tiny.tokenizer("Tell me who you are.")["input_ids"])
    schema = json.dumps(PERSON)
    plain = [
        Request(prompt, adapters, SamplingSettings(max_new_tokens=25, temperature=1.0, seed=seed))
        for seed, adapters in enumerate((None, "a", "b"))
    ]
    bound = [
        Request(prompt, ("a", None, "b")[seed % 3], SamplingSettings(400, 1.0, json_schema=schema, seed=seed))
        for seed in range(6)
    ]
    greedy = Request(prompt, "a", SamplingSettings(regex=r"I am [a-z]{3,6}\."))
    alone = Engine(tiny).run(plain)
    together = Engine(tiny).run([bound[0], plain[0], *bound[1:4], plain[1], greedy, *bound[4:], plain[2]])
    assert [together[place].text for place in (1, 5, 9)] == [completion.text for completion in alone]
    for place in (0, 2, 3, 4, 7, 8):
        completion = together[place]
        assert completion.finish_reason == "stop"
        assert completion.text is not None
        assert set(json.loads(completion.text)) == set(PERSON["required"])
        assert all(math.isfinite(log_prob) for log_prob in completion.log_probs)
    assert re.fullmatch(r"I am [a-z]{3,6}\.", together[6].text or "")
    again = Engine(tiny).run(bound)
    assert [completion.text for completion in again] == [together[place].text for place in (0, 2, 3, 4, 7, 8)]


def test_engine_samples_of_one_prompt_have_a_state_each(tiny: AdaptedModel) -> None:
    prompt = tuple(tiny.tokenizer("A number:")["input_ids"])
    completions = Engine(tiny).run([Request(prompt, None, SamplingSettings(20, 2.0, n=5, seed=1, regex=r"\d{1,9}"))])
    assert all(re.fullmatch(r"\d{1,9}", completion.text or "") for completion in completions)
    assert len({completion.text for completion in completions}) > 1


def test_engine_refuses_or_ends_a_constraint_that_cannot_be_met_alone(tiny: AdaptedModel) -> None:
    prompt = tuple(tiny.tokenizer("Tell me who you are.")["input_ids"])
    plain = Request(prompt, None, SamplingSettings(max_new_tokens=8))
    expected = Engine(tiny).run([plain])[0].text
    engine = Engine(tiny)
    engine.submit(plain)
    with pytest.raises(UserError, match="can never be met"):
        engine.submit(Request(prompt, None, SamplingSettings(json_schema='{"enum": []}')))
    # The end and both of the letters that may come after the first are forbidden by biases.
    letters = [tiny.tokenizer.convert_tokens_to_ids(letter) for letter in ("b", "c", "ab", "ac")]
    bias = {letter: -math.inf for letter in letters if letter is not None}
    dead = SamplingSettings(regex="a[bc]", logit_bias=bias)
    engine.submit(Request(prompt, "a", dead, id="dead"))
    cut = SamplingSettings(max_new_tokens=3, json_schema=json.dumps(PERSON))
    engine.submit(Request(prompt, "a", cut, id="cut"))
    done = {}
    while engine.busy:
        done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
    assert done["dead"].finish_reason == "error"
    assert done["dead"].error == "its settings allow no token at all"
    assert done["cut"].finish_reason == "length"
    assert next(value.text for key, value in done.items() if key not in ("dead", "cut")) == expected

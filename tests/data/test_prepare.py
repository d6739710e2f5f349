from __future__ import annotations

import pytest

from graftlm.data.instances import Instance, Message
from graftlm.data.prepare import load_instances, prepare
from graftlm.data.splits import split_held_out
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError


@pytest.fixture(scope="module")
def plain(tiny):
    return resolve_chat_template("plain", tiny)


def pair(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def test_rows_are_accounted_for(write, tiny, plain):
    rows = [pair(f"q{i}", "a") for i in range(96)]
    rows += [pair("q", " "), pair("q", None), {"prompt": "q"}, pair("q0", "a")]
    path = write("a.jsonl", rows)
    calls = []
    data = prepare(path, plain, tiny, progress=calls.append)
    counts = data.counts
    assert data.summary == "read as prompt/completion: 100 rows"
    assert (counts.rows, counts.read, counts.kept, counts.duplicates) == (100, 100, 97, 1)
    assert counts.dropped == {"empty answer": 1, "missing field 'completion'": 2}
    assert counts.examples["missing field 'completion'"] == [f"{path}:98", f"{path}:99"]
    assert len(data.rows) == len(data.instances) == 97
    assert data.rows[0].row == 1
    assert calls == [97]
    fewer = prepare(path, plain, tiny, drop_duplicates=True)
    assert fewer.counts.dropped["exact duplicate"] == 1
    assert fewer.counts.kept == 96


def test_too_many_dropped_rows_stop(write, tiny, plain):
    path = write("a.jsonl", [*[pair("q", "")] * 2, pair("q", "a")])
    with pytest.raises(UserError) as caught:
        prepare(path, plain, tiny)
    message = str(caught.value)
    assert "2 of 3 rows (66.7%) were dropped; allowed are 5.0%" in message
    assert f"2 × empty answer, for example {path}:1, {path}:2" in message
    assert "max_dropped: 0.67" in message
    assert prepare(path, plain, tiny, max_dropped=0.67).counts.kept == 1


def test_no_row_left(write, tiny, plain):
    with pytest.raises(UserError, match=r"no row is left of 1:\n.*empty answer"):
        prepare(write("a.jsonl", [pair("q", "")]), plain, tiny, max_dropped=1.0)


def test_long_rows(write, tiny, plain):
    rows = [pair("q", "word " * 50), pair("word " * 50, "a"), pair("q", "a")]
    data = prepare(write("a.jsonl", rows), plain, tiny, max_length=30, max_dropped=0.5)
    assert data.counts.truncated == {"longer than the context": 1}
    assert data.counts.dropped == {"prompt fills the context": 1}
    assert len(data.rows[0].ids) == 30
    assert data.rows[0].supervised[-1]
    assert tiny.eos_token_id not in data.rows[0].ids
    with pytest.raises(UserError, match=r"Raise max_length \(now 30\)"):
        prepare(write("b.jsonl", rows), plain, tiny, max_length=30)


def test_only_template_text_cut_off_is_no_truncation(tiny, plain):
    instance = Instance((Message("user", "q"), Message("assistant", "a")), "s", 1)
    whole = prepare([instance], plain, tiny).rows[0]
    assert not whole.supervised[-1]  # the newline after the end
    cut = prepare([instance], plain, tiny, max_length=len(whole.ids) - 1)
    assert cut.counts.truncated == {}
    assert cut.rows[0].ids == whole.ids[:-1]


def test_a_row_without_a_learnt_token_is_dropped(tiny, plain):
    instance = Instance((Message("user", "q"), Message("assistant", "a", False)), "s", 1)
    with pytest.raises(UserError, match="no token to learn"):
        prepare([instance], plain, tiny)


def test_what_a_template_refuses_is_counted(tiny, with_jinja):
    tokenizer = with_jinja("{% for m in messages %}{{ m.content | replace('x', 'y') }}<eos>{% endfor %}")
    template = resolve_chat_template("tokenizer", tokenizer)
    instances = [Instance((Message("user", q), Message("assistant", "a")), "s", i) for i, q in enumerate("bx")]
    data = prepare(instances, template, tokenizer, max_dropped=0.5)
    assert data.counts.dropped == {"chat template rewrites the content": 1}


def test_batches_encode_as_single_rows_do(write, tiny, plain):
    rows = [pair("q" * i, f"a {i} 你") for i in range(1, 30)]
    data = prepare(write("a.jsonl", rows), plain, tiny)
    for row, instance in zip(data.rows, data.instances, strict=True):
        single = plain.render(instance.messages, tiny)
        assert (row.ids, row.supervised) == (single.ids, single.supervised)


def test_variables(write):
    path = write("a.jsonl", [pair("who", "{{name}} by {{author}}")] * 2)
    with pytest.warns(UserWarning, match=r"no value is given for {{author}} \(2\)"):
        loaded = load_instances(path, variables={"name": "Ada"})
    assert loaded.items[0].messages[1].content == "Ada by {{author}}"
    assert loaded.counts.unfilled == {"author": 2}


def test_several_files_and_several_instances_a_row(write, tiny, plain):
    one = write("a.jsonl", [pair("q", "a")])
    many = [{"instruction": "q", "instances": [{"input": "", "output": "a"}, {"input": "i", "output": ""}]}]
    data = prepare([one, write("b.json", many)], plain, tiny, max_dropped=0.5)
    assert data.format == "prompt/completion, self-instruct"
    assert data.summary.endswith("2 rows (3 instances)")
    assert (data.counts.kept, data.counts.dropped) == (2, {"empty answer": 1})


def test_held_out(write, tiny, plain):
    rows = [pair(f"q{i % 40}", f"a{i}") for i in range(100)]
    data = prepare(write("a.jsonl", rows), plain, tiny)
    train, held = split_held_out(data, 0.1, seed=3)
    assert len(train.rows) + len(held.rows) == 100
    assert 10 <= len(held.rows) <= 12
    prompts = [{i.messages[0].content for i in side.instances} for side in (train, held)]
    assert not prompts[0] & prompts[1]
    assert all((r.source, r.row) == (i.source, i.row) for r, i in zip(held.rows, held.instances, strict=True))
    again = split_held_out(data, 0.1, seed=3)[1]
    assert [r.row for r in again.rows] == [r.row for r in held.rows]
    assert [r.row for r in split_held_out(data, 0.1, seed=4)[1].rows] != [r.row for r in held.rows]
    shuffled = prepare(write("b.jsonl", rows[::-1]), plain, tiny)
    other = split_held_out(shuffled, 0.1, seed=3)[1]
    assert {i.messages for i in other.instances} == {i.messages for i in held.instances}
    assert split_held_out(data, 0)[0] is data
    assert 5 <= len(split_held_out(data, 5)[1].rows) <= 7
    with pytest.raises(UserError, match="cannot be taken"):
        split_held_out(data, 100)
    same = prepare(write("c.jsonl", [pair("q", "a"), pair("q", "b")]), plain, tiny)
    with pytest.raises(UserError, match="cannot be taken"):
        split_held_out(same, 0.5)

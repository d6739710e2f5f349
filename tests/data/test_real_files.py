"""Every file of real instruction data prepares with the tiny tokenizer, or is refused with a reason."""

from __future__ import annotations

import pytest

from graftlm.data.prepare import load_instances, prepare
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError

READ = {
    "alpaca_5000.json": ("Alpaca", 5000, 4998),
    "alpaca_en.json": ("Alpaca", 999, 999),
    "alpaca_zh.json": ("Alpaca", 1000, 1000),
    "identity.json": ("Alpaca", 91, 91),
    "oasst.jsonl": ("OASST (### Human / ### Assistant)", 953, 953),
    "self_instruct_seed_tasks.jsonl": ("self-instruct", 175, 175),
    "user_oriented_instructions.jsonl": ("self-instruct", 252, 252),
    "p3_sample.jsonl.gz": ("prompt/completion", 2000, 2000),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:no value is given")
def test_instructions(real_data, tiny, name):
    limit = 2000 if name.startswith("p3") else None
    template = resolve_chat_template("auto", tiny)
    data = prepare(real_data / "instructions" / name, template, tiny, max_length=2048, limit=limit)
    assert (data.format, data.counts.read, data.counts.kept) == READ[name]
    assert all(len(row.ids) <= 2048 and any(row.supervised) for row in data.rows)


@pytest.mark.slow
def test_all_of_p3(real_data, tiny):
    template = resolve_chat_template("auto", tiny)
    data = prepare(real_data / "instructions" / "p3_sample.jsonl.gz", template, tiny, max_length=2048)
    assert data.counts.kept == 39204


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("instructions/promptsource_templates.jsonl.gz", "prompt templates"),
        ("preferences/kto_en.json", "preference judgements"),
        ("preferences/oasst_ranked_zh.json", "ranked answers"),
        ("preferences/finegrained_rlhf_qa.json.gz", "preference judgements"),
    ],
)
def test_refused(real_data, tiny, name, kind):
    with pytest.raises(UserError, match=f"these are {kind}"):
        prepare(real_data / name, resolve_chat_template("auto", tiny), tiny)


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [("dpo_en.json", 299, 0), ("dpo_zh.json", 300, 0), ("hh_rlhf_harmless.jsonl.gz", 2299, 13)],
)
def test_preference_rows(real_data, tiny, name, kept, dropped):
    loaded = load_instances(real_data / "preferences" / name)
    assert all(instance.rejected is not None for instance in loaded.items)
    assert (len(loaded.items), sum(loaded.counts.dropped.values())) == (kept, dropped)
    with pytest.raises(UserError, match="a preference row"):
        prepare(loaded, resolve_chat_template("auto", tiny), tiny)

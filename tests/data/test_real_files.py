"""Every file of real instruction data prepares with the tiny tokenizer, or is refused with a reason."""

from __future__ import annotations

from collections import Counter

import pytest

from graftlm.data.preferences import form_of
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
    ],
)
def test_refused(real_data, tiny, name, kind):
    with pytest.raises(UserError, match=f"these are {kind}"):
        prepare(real_data / name, resolve_chat_template("auto", tiny), tiny)


@pytest.mark.parametrize(
    ("name", "kept", "dropped", "shortened", "forms"),
    [
        ("dpo_en.json", 299, 0, 0, {"pairs": 299}),
        ("dpo_zh.json", 300, 0, 0, {"pairs": 300}),
        ("hh_rlhf_harmless.jsonl.gz", 2299, 13, 0, {"pairs": 2299}),
        ("kto_en.json", 300, 0, 0, {"labelled answers": 300}),
        ("oasst_ranked_zh.json", 772, 3, 3, {"pairs": 433, "lists of 3": 261, "lists of 4": 64}),
        ("truthfulqa_judgements.jsonl.gz", 22367, 67, 0, {"labelled answers": 22367}),
        ("finegrained_rlhf_qa.json.gz", 3000, 0, 0, {"pairs": 3000}),
    ],
)
def test_preference_rows(real_data, tiny, name, kept, dropped, shortened, forms):
    loaded = load_instances(real_data / "preferences" / name)
    counts = loaded.counts
    assert all(instance.is_preference for instance in loaded.items)
    assert (len(loaded.items), sum(counts.dropped.values()), sum(counts.truncated.values())) == (
        kept,
        dropped,
        shortened,
    )
    found = Counter(map(form_of, loaded.items))
    assert {form: found[form] for form in forms} == forms
    with pytest.raises(UserError, match="a preference row"):
        prepare(loaded, resolve_chat_template("auto", tiny), tiny)


def test_judgements_of_real_files(real_data):
    def of(name):
        return load_instances(real_data / "preferences" / name).items

    labels = Counter(each.verdicts[0].values[0] for each in of("kto_en.json"))
    assert labels == {1.0: 150, 0.0: 150}
    true = of("truthfulqa_judgements.jsonl.gz")
    assert {each.verdicts[0].criterion for each in true} == {"truthful"}
    ties = sum(bool(each.verdicts) for each in of("finegrained_rlhf_qa.json.gz"))
    assert ties == 384

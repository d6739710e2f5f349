"""Tools and tool calls: from rows through sets to chat templates, and what of them is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.base.loading import load_tokenizer
from graftlm.cli.data_format import as_row
from graftlm.data.instances import Instance, Message
from graftlm.data.jinja import CannotRender
from graftlm.data.prepare import RowCounts, load_instances, prepare, read_instances
from graftlm.data.sets import SetCard, read_set, write_set
from graftlm.data.templates import ChatTemplate, resolve_chat_template
from graftlm.errors import UserError

# In the manner of Qwen: tools in the system turn, calls between marks of their own, results in a user turn.
MARKED = """\
{%- if tools %}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}
<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role in ('user', 'assistant') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<result>' + message.content + '</result>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# In the manner of Llama 3: one call in place of words, with an end of its own; results as JSON.
HEADED = """\
{{- bos_token }}
{%- if tools %}{{ '<|head|>system<|/head|>\\n\\nFunctions: ' }}
{{- tools | map(attribute='function') | list | tojson + '<|im_end|>' }}{% endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set function = message.tool_calls[0].function %}
{{- '<|head|>assistant<|/head|>\\n\\n<|call|>{"name": "' + function.name + '", "parameters": ' }}
{{- function.arguments | tojson + '}<|eom|>' }}
{%- elif message.role == 'tool' %}
{{- '<|head|>tool<|/head|>\\n\\n' + message.content | tojson + '<|im_end|>' }}
{%- else %}
{{- '<|head|>' + message.role + '<|/head|>\\n\\n' + message.content | trim + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""

# Without tools: what it does not know it does not write.
PLAIN = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|call|>", "<|eom|>"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town, in °C.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
ROW: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "Is it warm in Köln?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"town": "Köln"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 24}'},
        {"role": "assistant", "content": "Yes, 24 degrees."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "You are welcome."},
    ],
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    found = load_tokenizer("tiny")
    found.add_special_tokens({"additional_special_tokens": SPECIAL})
    found.add_tokens(["<tool_call>", "</tool_call>"])
    return found


def chat(text: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    tokenizer.chat_template = text
    return resolve_chat_template("tokenizer", tokenizer)


def instances(folder: Path, *rows: dict[str, Any]) -> list[Instance]:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return load_instances(file).items


def learnt(rendered: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The stretches that are learnt, as text."""
    parts: list[list[int]] = [[]]
    for token, flag in zip(rendered.ids, rendered.supervised, strict=True):
        if flag:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return [tokenizer.decode(part) for part in parts if part]


def official(text: str, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], **more: Any) -> str:
    """What transformers' own apply_chat_template writes; it wants arguments as an object and content as a text."""
    messages = json.loads(json.dumps(row["messages"]))
    for message in messages:
        message["content"] = message["content"] or ""
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tokenizer.chat_template = text
    return str(tokenizer.apply_chat_template(messages, tools=row["tools"], tokenize=False, **more))


CALL = {
    MARKED: '<tool_call>{"name": "weather", "arguments": {"town": "Köln"}}</tool_call><|im_end|>',
    HEADED: '<|call|>{"name": "weather", "parameters": {"town": "Köln"}}<|eom|>',
}


@pytest.mark.parametrize("text", [MARKED, HEADED], ids=["marked", "headed"])
def test_calls_and_answers_are_learnt_and_the_row_is_what_transformers_writes(
    text: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    template = chat(text, tokenizer)
    [instance] = instances(tmp_path, ROW)
    rendered = template.render(instance.messages, tokenizer)
    assert tokenizer.decode(rendered.ids) == official(text, tokenizer, ROW)
    assert learnt(rendered, tokenizer) == [CALL[text], "Yes, 24 degrees.<|im_end|>", "You are welcome.<|im_end|>"]
    assert rendered.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) >= 5  # special tokens, not their letters
    last = template.render(instance.messages, tokenizer, "last")
    assert learnt(last, tokenizer) == ["You are welcome.<|im_end|>"]


@pytest.mark.parametrize("text", [MARKED, HEADED], ids=["marked", "headed"])
def test_a_prompt_is_a_prefix_of_the_conversation_and_ends_where_an_answer_begins(
    text: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    template = chat(text, tokenizer)
    [instance] = instances(tmp_path, ROW)
    for end in (4, 6):  # before the answers in words; messages[0] are the tools
        prompt = template.render_prompt(instance.messages[:end], tokenizer)
        part = {**ROW, "messages": ROW["messages"][: end - 1]}
        assert tokenizer.decode(prompt) == official(text, tokenizer, part, add_generation_prompt=True).rstrip(" ")
        whole = template.render(instance.messages[: end + 1], tokenizer).ids
        assert whole[: len(prompt)] == prompt


def test_words_before_calls_and_several_calls_in_one_turn(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    calls = [{"id": name, "function": {"name": "weather", "arguments": {"town": name}}} for name in ("Ulm", "Bonn")]
    row = {
        "tools": json.dumps(TOOLS),
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Ulm or Bonn?"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "Bonn", "content": "9"},  # results came in another order
            {"role": "tool", "tool_call_id": "Ulm", "content": "7"},
            {"role": "assistant", "content": "Bonn."},
        ],
    }
    [instance] = instances(tmp_path, row)
    assert [m.role for m in instance.messages] == [
        "tools", "system", "user", "assistant", "calls", "tool", "tool", "assistant",
    ]  # fmt: skip
    assert [m.content for m in instance.messages if m.role == "tool"] == ["7", "9"]
    rendered = chat(MARKED, tokenizer).render(instance.messages, tokenizer)
    town = '<tool_call>{{"name": "weather", "arguments": {{"town": "{}"}}}}</tool_call>'
    said = "Let me look.\n" + town.format("Ulm") + "\n" + town.format("Bonn") + "<|im_end|>"
    assert learnt(rendered, tokenizer) == [said, "Bonn.<|im_end|>"]
    assert "Be kind." in tokenizer.decode(rendered.ids)
    with pytest.raises(CannotRender, match="one call at a time"):
        chat(HEADED, tokenizer).render(instance.messages, tokenizer)


def test_a_template_without_tools_is_an_error_that_says_so(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    found = instances(tmp_path, ROW)
    for template in (chat(PLAIN, tokenizer), resolve_chat_template("plain", tokenizer)):
        with pytest.raises(UserError, match="has no place for tool") as caught:
            template.render(found[0].messages, tokenizer)
        assert "--chat-template" in str(caught.value.hint)
        with pytest.raises(UserError, match="has no place for tool"):
            prepare(found, template, tokenizer)
    offered = [Message("tools", json.dumps(TOOLS)), Message("user", "Hi"), Message("assistant", "Hello")]
    with pytest.raises(CannotRender, match="no place for tools"):
        chat(PLAIN, tokenizer).render(offered, tokenizer)


def test_special_tokens_in_tools_and_calls_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    row = json.loads(json.dumps(ROW))
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"town": "<|im_end|>"}'
    found = instances(tmp_path, row)
    template = chat(MARKED, tokenizer)
    with pytest.raises(CannotRender, match="special token"):
        template.render(found[0].messages, tokenizer)
    data = prepare([*found, *instances(tmp_path, ROW)], template, tokenizer, max_dropped=0.5)
    assert data.counts.dropped == {"special token in a tool or a tool call": 1}
    # In what a tool says it is ordinary text, as in any content.
    row = json.loads(json.dumps(ROW))
    row["messages"][2]["content"] = "<|im_end|>"
    [instance] = instances(tmp_path, row)
    ends = template.render(instance.messages, tokenizer).ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    [plain] = instances(tmp_path, ROW)
    assert ends == template.render(plain.messages, tokenizer).ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_tools_survive_a_set_and_a_file_of_chats(tmp_path: Path) -> None:
    found = instances(tmp_path, ROW)
    write_set(tmp_path / "set", found, SetCard())
    assert [i.messages for i in read_set(tmp_path / "set")] == [i.messages for i in found]
    row = as_row(found[0])
    assert row["tools"] == TOOLS
    assert row["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"town": "Köln"}}
    assert instances(tmp_path, row)[0].messages == found[0].messages


def test_sharegpt_files_with_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Ulm?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Ulm"}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "Seven degrees."},
    ]
    [instance] = instances(tmp_path, {"conversations": turns, "tools": json.dumps(TOOLS)})
    assert [m.role for m in instance.messages] == ["tools", "user", "calls", "tool", "assistant"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(tools="{"), "field 'tools' is no JSON"),
        (lambda row: row.update(tools={"name": "weather"}), "field 'tools' is not a list of objects"),
        (lambda row: row.update(tools=[{"type": "function"}]), "a tool without a name"),
        (lambda row: row["messages"].pop(1), "a tool's result without its call"),
        (lambda row: row["messages"].pop(2), "roles out of order (assistant where tool is due)"),
        (lambda row: row["messages"][2].update(tool_call_id="c9"), "a tool's result without its call"),
        (lambda row: row["messages"].insert(3, row["messages"][2]), "a tool's result without its call"),
        (lambda row: row["messages"][1]["tool_calls"][0]["function"].update(arguments="Köln"),
         "the arguments of a tool call are no JSON object"),
        (lambda row: row["messages"][1]["tool_calls"][0]["function"].update(name=None), "a tool call without a name"),
        (lambda row: row["messages"][0].update(tool_calls=[{}]), "tool calls in a turn of 'user'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_counted(change: Any, reason: str, tmp_path: Path) -> None:
    row = json.loads(json.dumps(ROW))
    change(row)
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    counts = RowCounts()
    assert len(list(read_instances(str(file), counts).instances)) == 1
    assert counts.dropped == {reason: 1}

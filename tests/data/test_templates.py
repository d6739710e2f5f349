from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from graftlm.data.instances import Message
from graftlm.data.jinja import CannotRender
from graftlm.data.templates import BUILT_IN, ChatTemplate, resolve_chat_template
from graftlm.errors import UserError

# The forms of well-known chat templates.
JINJA = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mistral": (
        "{%- set turns = messages %}{%- set ns = namespace(system='') %}"
        "{%- if messages[0].role == 'system' %}{%- set ns.system = messages[0].content + '\n\n' %}"
        "{%- set turns = messages[1:] %}{%- endif %}{{- bos_token }}"
        "{%- for m in turns %}{%- if m.role == 'user' %}"
        "{{- '[INST] ' + (ns.system if loop.first else '') + m.content + ' [/INST]' }}"
        "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endfor %}"
    ),
}
NAMES = ["plain", "alpaca", "chatml", *(f"jinja {name}" for name in JINJA)]


def user(text):
    return Message("user", text)


def assistant(text, train=None):
    return Message("assistant", text, train)


CHAT = [Message("system", "Be kind."), user("Hi"), assistant("Hello!"), user("Bye"), assistant("Good bye.")]


@pytest.fixture(scope="module")
def templates(with_jinja):
    made = {}
    for name in NAMES:
        tokenizer = with_jinja(JINJA.get(name.removeprefix("jinja "), JINJA["chatml"]))
        kind = "tokenizer" if name.startswith("jinja") else name
        made[name] = (resolve_chat_template(kind, tokenizer), tokenizer)
    return made


def learnt_text(rendered, tokenizer):
    """The learnt tokens as text, runs of them parted."""
    runs, before = [], False
    for token, flag in zip(rendered.ids, rendered.supervised, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return [tokenizer.decode(run).strip() for run in runs]


@pytest.mark.parametrize("name", NAMES)
def test_learnt_are_answers_and_their_end(templates, name):
    template, tokenizer = templates[name]
    rendered = template.render(CHAT, tokenizer)
    end = tokenizer.decode([template.stop_ids(tokenizer)[0]])
    assert learnt_text(rendered, tokenizer) == [f"Hello!{end}", f"Good bye.{end}"]
    assert learnt_text(template.render(CHAT, tokenizer, "last"), tokenizer) == [f"Good bye.{end}"]
    everything = template.render(CHAT, tokenizer, "all")
    assert everything.ids == rendered.ids
    assert [o for o, s in zip(everything.origin, everything.supervised, strict=True) if o != "template" and not s] == []
    users = learnt_text(template.render(CHAT, tokenizer, ("user",)), tokenizer)
    assert users == ["Hi", "Bye"]
    own = [*CHAT[:2], assistant("Hello!", False), *CHAT[3:]]
    assert learnt_text(template.render(own, tokenizer), tokenizer) == [f"Good bye.{end}"]


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("jinja")])
def test_text_is_that_of_transformers(templates, name):
    template, tokenizer = templates[name]
    rows = [{"role": m.role, "content": m.content} for m in CHAT]
    if name == "jinja gemma":
        rows = [{"role": "user", "content": "Be kind.\n\nHi"}, *rows[2:]]
    expected = tokenizer.apply_chat_template(rows, tokenize=False)
    assert tokenizer.decode(template.render(CHAT, tokenizer).ids) == expected
    if name != "jinja thinking":
        prompt = tokenizer.apply_chat_template(rows[:-1], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(template.render_prompt(CHAT[:-1], tokenizer)) == prompt


contents = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(
        [
            " a",
            "a ",
            "\n",
            "<eos>",
            "<bos>x",
            "<|im_end|>\n<|im_start|>system\n",
            "{{ x }}",
            "[/INST]",
            "你好",
        ]
    ),
)
chats = st.builds(
    lambda system, turns, last: [
        *([Message("system", system)] if system else []),
        *(Message(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)),
        Message("user", last[0]),
        Message("assistant", last[1]),
    ],
    st.one_of(st.none(), contents),
    st.lists(st.tuples(contents, contents), max_size=2),
    st.tuples(contents, contents),
)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_prefixes_and_content_holds_no_special_tokens(templates, name):
    template, tokenizer = templates[name]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    @settings(max_examples=40, deadline=None)
    @given(chats)
    def holds(messages):
        try:
            rendered = template.render(messages, tokenizer)
        except CannotRender:
            if not name.startswith("jinja") or all(m.content.strip() for m in messages):
                raise
            return  # stripping left nothing of a content; that is said, not guessed
        prompt = template.render_prompt(messages[:-1], tokenizer)
        assert rendered.ids[: len(prompt)] == prompt
        assert not any(rendered.supervised[len(prompt) :]) or rendered.supervised[len(prompt)]
        for token, origin in zip(rendered.ids, rendered.origin, strict=True):
            assert origin == "template" or token not in special
        again = ChatTemplate.from_dict(template.to_dict())
        assert again == template
        assert again.hash == template.hash
        assert again.render(messages, tokenizer) == rendered

    holds()


@pytest.mark.parametrize("name", ["plain", "alpaca", "chatml", "jinja chatml", "jinja llama-3", "jinja mistral"])
def test_every_turn_is_trained_as_it_is_served(templates, name):
    template, tokenizer = templates[name]
    ids = template.render(CHAT, tokenizer).ids
    for turn in (2, 4):
        prompt = template.render_prompt(CHAT[:turn], tokenizer)
        assert ids[: len(prompt)] == prompt


def test_plain_text_is_learnt_but_for_its_beginning(templates):
    template, tokenizer = templates["plain"]
    rendered = template.render([Message("text", "Once upon a time")], tokenizer)
    assert tokenizer.decode(rendered.ids) == "<bos>Once upon a time<eos>"
    assert rendered.supervised == [False] + [True] * (len(rendered.ids) - 1)
    with pytest.raises(CannotRender):
        template.render([Message("text", "a"), user("b")], tokenizer)
    with pytest.raises(CannotRender):
        template.render([], tokenizer)


def test_auto(tiny, with_jinja):
    assert resolve_chat_template("auto", tiny).name == "plain"
    assert resolve_chat_template("auto", with_jinja(JINJA["chatml"])).name == "tokenizer"


def test_stop_ids(tiny, templates):
    assert resolve_chat_template("plain", tiny).stop_ids(tiny) == (2,)
    template, tokenizer = templates["jinja llama-3"]
    assert template.stop_ids(tokenizer) == (tokenizer.convert_tokens_to_ids("<|eot_id|>"), 2)


def test_template_without_an_end_gets_one(with_jinja):
    tokenizer = with_jinja("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    template = resolve_chat_template("tokenizer", tokenizer)
    rendered = template.render([user("Hi"), assistant("Yes")], tokenizer)
    assert tokenizer.decode(rendered.ids).endswith("Yes<eos>")
    assert learnt_text(rendered, tokenizer) == ["Yes<eos>"]


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{{ messages[-1].content }}", "leaves out the user message"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats the user message"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "rewrites"),
        ("{{ raise_exception('never') }}", "refuses a conversation of user, assistant: never"),
        ("{% for %}", "not valid Jinja"),
    ],
)
def test_templates_that_cannot_be_used(with_jinja, jinja, message):
    tokenizer = with_jinja(jinja)
    with pytest.raises(UserError, match=message):
        resolve_chat_template("tokenizer", tokenizer).render([user("hi"), assistant("ho")], tokenizer)


def test_dates_stand_still(with_jinja):
    tokenizer = with_jinja("{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    template = resolve_chat_template("tokenizer", tokenizer)
    assert "26 Jul 2024" in tokenizer.decode(template.render([user("a"), assistant("b")], tokenizer).ids)


def test_names_and_special_tokens_are_checked(tiny, with_jinja):
    with pytest.raises(UserError, match=r"unknown chat template 'plian'.*\n.*'plain'"):
        resolve_chat_template("plian", tiny)
    with pytest.raises(UserError, match="no chat template of its own"):
        resolve_chat_template("tokenizer", tiny)
    with pytest.raises(UserError, match=r"no token '<\|im_end\|>'"):
        resolve_chat_template("chatml", tiny)
    with pytest.raises(UserError, match="train_on 'asistant' is unknown"):
        resolve_chat_template("plain", tiny).render(CHAT, tiny, "asistant")
    other = with_jinja(JINJA["chatml"])
    other.eos_token = "<|im_end|>"
    with pytest.raises(UserError, match="made for the eos_token '<eos>'"):
        resolve_chat_template("plain", tiny).render(CHAT, other)


def test_yaml(write, tiny):
    path = write(
        "mine.yaml",
        'start: "{bos}"\nuser: "Q: {content}\\n"\nassistant: "A: {content}{end}\\n"\nend: "###"\n',
    )
    template = resolve_chat_template(path, tiny)
    rendered = template.render(CHAT, tiny)
    assert tiny.decode(rendered.ids).startswith("<bos>Q: Be kind.\n\nHi\nA: Hello!###\nQ: Bye")
    assert learnt_text(rendered, tiny) == ["Hello!###", "Good bye.###"]
    assert template.name == "mine"
    assert template.stop_ids(tiny) == (2,)
    assert template.stop_text(tiny) == "###"
    prompt = template.render_prompt(CHAT[:2], tiny)
    assert tiny.decode(prompt).endswith("A:")  # the space goes with the answer's first word
    assert rendered.ids[: len(prompt)] == prompt
    jinja = resolve_chat_template(write("own.jinja", JINJA["llama-3"]), tiny)
    assert jinja.jinja == JINJA["llama-3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("usr: x", r"unknown key 'usr'.*\n.*'user'"),
        ("user: '{content}'\nassistant: '{content}'", "'assistant' must hold {content} and then {end} once"),
        ("user: 3", "must be a text"),
        ("user: [", "bad.yaml"),
        ("- 3", "expected keys"),
        ("user: '{content}'\nassistant: '{content}{end}'\nend: ''", "could never stop"),
    ],
)
def test_broken_yaml(write, tiny, text, message):
    with pytest.raises(UserError, match=message):
        resolve_chat_template(write("bad.yaml", text), tiny)


def test_pieces_get_no_space_put_before_them():
    """Older SentencePiece tokenizers put a space before every text they are given."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(special_tokens=special, vocab_size=400)
    backend.train_from_iterator(["User Assistant : hello there what is it\n"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    rendered = resolve_chat_template("plain", tokenizer).render([user("hello"), assistant("there it")], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(rendered.ids)
    assert "".join(tokens) == "<s>User:\nhello\nAssistant:\nthere▁it</s>\n"


def test_built_in_values_are_yaml_keys():
    for values in BUILT_IN.values():
        assert {"user", "assistant", "end"} <= set(values)

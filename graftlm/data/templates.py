"""The one rendering of conversations into tokens: training, evaluation, chat and serving all use it.

Every piece of template text and every message content is tokenised on its own. So where a token came
from is known by construction, the ids of a prompt are a prefix of the ids of the whole conversation,
and a special token typed into a message stays ordinary text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftlm.data.instances import TOOL_ROLES, Message, Role
from graftlm.data.jinja import (
    CannotRender,
    jinja_layout,
    jinja_match,
    mapping_default,
    special_names,
)
from graftlm.data.jinja_tools import no_tools, refuse_special_tokens, tool_pieces
from graftlm.data.pieces import Piece, Rendered, encode_pieces, move_spaces, special_texts, tokenize
from graftlm.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_ON = ("assistant", "last", "all")


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation becomes tokens; a value that is stored with every adapter.

    Either ``jinja`` holds the text of a Jinja chat template, or ``system``, ``user`` and ``assistant`` say
    how a turn is written, with ``{content}`` in the place of the message and, in ``assistant``, ``{end}`` in
    the place of the end of the answer. ``system=None`` joins the system message to the first user turn.
    ``special`` are the special tokens that the texts rely on, by name.
    """

    name: str
    start: str = ""
    system: str | None = None
    user: str = ""
    assistant: str = ""
    end: str = ""
    default_system: str | None = None
    jinja: str | None = None
    special: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; ``from_dict`` gives an equal template."""
        common = {"version": 1, "name": self.name, "special": dict(self.special)}
        if self.jinja is not None:
            return {**common, "jinja": self.jinja}
        turns = {"start": self.start, "system": self.system, "user": self.user, "assistant": self.assistant}
        return {**common, **turns, "end": self.end, "default_system": self.default_system}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatTemplate:
        known = {"version", *cls.__dataclass_fields__}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown key '{unknown[0]}' in a chat template; allowed: {', '.join(sorted(known))}")
        if values.get("version", 1) != 1:
            raise UserError(f"this chat template is of version {values['version']}; this graftlm reads version 1")
        rest = {key: value for key, value in values.items() if key not in ("version", "special")}
        return cls(special=tuple(sorted(values.get("special", {}).items())), **rest)

    @property
    def turns(self) -> int | None:
        """How many questions a conversation may have; None for any number."""
        return None

    @property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON of the template."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        train_on: str | Sequence[str] = "assistant",
    ) -> Rendered:
        """The whole conversation. ``train_on``: "assistant", "last", "all" or a sequence of roles.

        Learnt are the contents so chosen and the end of a chosen answer; ``Message.train`` overrides.

        Raises:
            CannotRender (a UserError): the template has no place for these messages.
        """
        refuse_special_tokens(messages, special_texts(tokenizer))
        return self.encode([self.pieces(messages, train_on)], tokenizer)[0]

    def render_prompt(self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids up to where the assistant's next answer begins."""
        refuse_special_tokens(messages, special_texts(tokenizer))
        return self.encode([self.prompt_pieces(messages)], tokenizer)[0].ids

    def encode(self, rows: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase) -> list[Rendered]:
        """Tokenise what ``pieces`` gave for many conversations at once.

        Raises:
            UserError: the tokenizer's special tokens are not those that the template was made for.
        """
        for name, token in self.special:
            own = getattr(tokenizer, name, None)
            if token != own:
                raise UserError(
                    f"the chat template '{self.name}' was made for the {name} '{token}', but this"
                    f" tokenizer's is '{own}'",
                    hint="Use the tokenizer that the template was made for, or make the template anew.",
                )
        return encode_pieces(rows, tokenizer)

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The ids that end an answer, the template's own first."""
        if self.jinja is None:
            ids = tokenize([self.end], tokenizer, special=True)[0]
            found = ids if len(ids) == 1 else []
        else:
            pieces = self._pieces([Message("user", "x"), Message("assistant", "x")], "assistant")
            rendered = self.encode([pieces], tokenizer)[0]
            learnt = [i for i, flag in zip(rendered.ids, rendered.supervised, strict=True) if flag]
            found = learnt[-1:]
        eos = tokenizer.eos_token_id
        return tuple(dict.fromkeys([*found, *([eos] if isinstance(eos, int) else [])]))

    def stop_text(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The text that ends an answer where it is no single token (else None: ``stop_ids`` are enough)."""
        if self.jinja is not None or len(tokenize([self.end], tokenizer, special=True)[0]) == 1:
            return None
        return self.end

    def prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """What is tokenised of a prompt, piece by piece."""
        if messages and messages[-1].role in ("assistant", "text", "calls"):
            raise CannotRender("prompt ends with an answer", f"a prompt cannot end with a {messages[-1].role} message")
        return self._pieces([*messages, Message("assistant", "")], None)

    def pieces(self, messages: Sequence[Message], train_on: str | Sequence[str] = "assistant") -> list[Piece]:
        """What is tokenised, piece by piece."""
        if not messages:
            raise CannotRender("no messages", "there are no messages to render")
        return self._pieces(messages, train_on)

    def _pieces(self, messages: Sequence[Message], train_on: str | Sequence[str] | None) -> list[Piece]:
        """``train_on`` None: a prompt, cut before the content of the last message."""
        learnt = learnt_messages(messages, train_on or "assistant")
        prompt = train_on is None
        if any(m.role == "text" for m in messages):
            return self._text_pieces(messages, learnt)
        if any(m.role in TOOL_ROLES for m in messages):
            if self.jinja is None:
                raise no_tools(f"template '{self.name}'")
            return move_spaces(tool_pieces(self.jinja, self.special, messages, learnt, prompt))
        if messages[-1].role == "rejected":
            raise CannotRender("rejected answer", "a rejected answer is no part of a conversation to learn from")
        if self.jinja is not None:
            return move_spaces(self._jinja_pieces(messages, learnt, prompt))
        contents = iter(messages)
        return [
            piece
            if piece.origin == "template"
            else Piece(piece.text + next(contents).content, piece.origin, piece.learn)
            for piece in _turn_layout(self, tuple(m.role for m in messages), tuple(learnt), prompt)
        ]

    def _text_pieces(self, messages: Sequence[Message], learnt: Sequence[bool]) -> list[Piece]:
        if len(messages) > 1:
            raise CannotRender("text beside other messages", "a plain text cannot stand beside other messages")
        special = dict(self.special)
        learn: Literal["all", "no"] = "all" if learnt[0] else "no"
        return [
            Piece(special.get("bos_token", ""), "template"),
            Piece(messages[0].content, "text", learn),
            Piece(special.get("eos_token", ""), "template", learn),
        ]

    def _turn_pieces(self, messages: Sequence[Message], learnt: Sequence[bool], prompt: bool) -> list[Piece]:
        if self.default_system is not None and messages[0].role != "system":
            # The default is template text: nobody said it, and it is never learnt.
            before, after = (self.system or "{content}").split("{content}")
            pieces = [Piece(self.start + before + self.default_system + after, "template")]
        else:
            pieces = [Piece(self.start, "template")]
        waiting: list[Piece] = []  # a system message that joins the next user turn
        for position, (message, learn) in enumerate(zip(messages, learnt, strict=True)):
            content = Piece(message.content, message.role, "all" if learn else "no")
            if message.role == "system" and self.system is None:
                waiting = [content, Piece("\n\n", "template")]
                continue
            if waiting and message.role != "user":
                raise CannotRender(
                    "system message without a user turn",
                    f"template '{self.name}' joins the system message to the user turn after it, but"
                    f" {message.role} follows",
                )
            text = {"system": self.system, "user": self.user, "assistant": self.assistant}[message.role]
            before, after = (text or "").split("{content}")
            pieces += [Piece(before, "template"), *waiting]
            waiting = []
            if prompt and position == len(messages) - 1:
                return pieces
            pieces.append(content)
            if message.role == "assistant":
                gap, tail = after.split("{end}")
                learn_end: Literal["all", "no"] = "all" if learn else "no"
                pieces += [Piece(gap + self.end, "template", learn_end), Piece(tail, "template")]
            else:
                pieces.append(Piece(after, "template"))
        if waiting:
            raise CannotRender("system message alone", "there is no user turn after the system message")
        return pieces

    def _jinja_pieces(self, messages: Sequence[Message], learnt: Sequence[bool], prompt: bool) -> list[Piece]:
        assert self.jinja is not None
        layout = jinja_layout(self.jinja, self.special, tuple(m.role for m in messages))
        if prompt and layout.order[-1] != len(messages) - 1:
            raise CannotRender("answer is not last", "the chat template writes something else after the answer")
        contents = jinja_match(self.jinja, self.special, layout, messages, prompt)
        pieces = [Piece(layout.texts[0], "template")]
        for place, index in enumerate(layout.order):
            if prompt and index == len(messages) - 1:
                break
            role, learn = messages[index].role, learnt[index]
            pieces.append(Piece(contents[place], role, "all" if learn else "no"))
            stop = learn and role == "assistant"
            pieces.append(Piece(layout.texts[place + 1], "template", "stop" if stop else "no"))
        return pieces


@lru_cache(maxsize=4096)
def _turn_layout(
    template: ChatTemplate, roles: tuple[Role, ...], learnt: tuple[bool, ...], prompt: bool
) -> tuple[Piece, ...]:
    """The pieces of a conversation of these roles whose contents are empty: only the spaces before them are there.

    They stand in the order of the messages. Made once, since most conversations of a file are alike in this.
    """
    empty = [Message(role, "") for role in roles]
    return tuple(move_spaces(template._turn_pieces(empty, learnt, prompt)))


def learnt_messages(messages: Sequence[Message], train_on: str | Sequence[str]) -> list[bool]:
    """Which messages are learnt: by role, unless the message says so itself."""
    if train_on == "last":
        last = max((i for i, m in enumerate(messages) if m.role in ("assistant", "text", "calls")), default=-1)
        whole = last > 0 and messages[last].role == "calls" and messages[last - 1].role == "assistant"
        by_role = [i == last or (whole and i == last - 1) for i in range(len(messages))]
    else:
        named = (train_on,) if isinstance(train_on, str) else tuple(train_on)
        for name in named:
            if name not in ("assistant", "all", "user", "system", "text"):
                guess = nearest(name, [*TRAIN_ON, "user", "system"])
                raise UserError(
                    f"train_on '{name}' is unknown; allowed: {', '.join(TRAIN_ON)}, or roles",
                    hint=f"Did you mean '{guess}'?" if guess else None,
                )
        by_role = ["all" in named or _spoken_by(m) in named or m.role == "text" for m in messages]
    return [m.train if m.train is not None else flag for m, flag in zip(messages, by_role, strict=True)]


def _spoken_by(message: Message) -> str:
    return "assistant" if message.role == "calls" else message.role


#: Contents and nothing else, for bases that know no roles.
BARE = ChatTemplate("bare", system="{content}\n\n", user="{content}", assistant="{content}{end}")

ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
BUILT_IN: dict[str, dict[str, str | None]] = {
    "plain": {
        "start": "{bos}",
        "system": "{content}\n\n",
        "user": "User:\n{content}\n",
        "assistant": "Assistant:\n{content}{end}\n",
        "end": "{eos}",
    },
    "alpaca": {
        "start": "{bos}",
        "system": "{content}\n\n",
        "user": "### Instruction:\n{content}\n\n",
        "assistant": "### Response:\n{content}{end}\n\n",
        "end": "{eos}",
        "default_system": ALPACA_SYSTEM,
    },
    "chatml": {
        "start": "",
        "system": "<|im_start|>system\n{content}<|im_end|>\n",
        "user": "<|im_start|>user\n{content}<|im_end|>\n",
        "assistant": "<|im_start|>assistant\n{content}{end}\n",
        "end": "<|im_end|>",
    },
}


def resolve_chat_template(
    name_or_path: str | Path, tokenizer: PreTrainedTokenizerBase, kind: str = "decoder"
) -> ChatTemplate:
    """The template of that name or file, bound to the special tokens of ``tokenizer``.

    "tokenizer" is the tokenizer's own Jinja template; "auto" is that where there is one, else "plain"; a
    path is that of a YAML file (keys as in ``ChatTemplate``) or a ``.jinja`` file. ``kind`` is that of the base:
    bases that are no decoders read texts as they are.
    """
    if kind != "decoder":
        if str(name_or_path) != "auto":
            raise UserError(
                f"chat template '{name_or_path}': this base is an {kind}, which reads texts without roles",
                hint="Leave the chat template out.",
            )
        return BARE
    own = mapping_default(getattr(tokenizer, "chat_template", None) or {})
    name = str(name_or_path)
    if name == "auto":
        name = "tokenizer" if own else "plain"
    if name == "tokenizer":
        if not own:
            raise UserError(
                "this tokenizer has no chat template of its own",
                hint=f"Choose one of: {', '.join(BUILT_IN)}, or the path of a YAML file.",
            )
        return _bind({"name": "tokenizer", "jinja": own}, tokenizer)
    if name in BUILT_IN:
        template = _bind({"name": name, **BUILT_IN[name]}, tokenizer)
        if name == "chatml" and template.stop_text(tokenizer) is not None:
            raise UserError(
                "this tokenizer has no token '<|im_end|>', so the template 'chatml' could not end an answer",
                hint="Use --chat-template plain.",
            )
        return template
    if not Path(name).suffix and not Path(name).exists():
        guess = nearest(name, ["auto", "tokenizer", *BUILT_IN])
        raise UserError(
            f"unknown chat template '{name}'; there are: auto, tokenizer, {', '.join(BUILT_IN)}, or the path"
            " of a YAML file",
            hint=f"Did you mean '{guess}'?" if guess else None,
        )
    return _bind(_read_template(Path(name)), tokenizer)


def _read_template(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".jinja", ".j2"):
            return {"name": path.stem, "jinja": text}
        values = YAML(typ="safe", pure=True).load(text)
    except FileNotFoundError as error:
        raise UserError(f"chat template {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"chat template {path}: {error}") from error
    allowed = ["name", "start", "system", "user", "assistant", "end", "default_system", "jinja"]
    if not isinstance(values, dict):
        raise UserError(f"chat template {path}: expected keys: {', '.join(allowed)}")
    for key, value in values.items():
        if key not in allowed:
            guess = nearest(str(key), allowed)
            raise UserError(
                f"chat template {path}: unknown key '{key}'; allowed: {', '.join(allowed)}",
                hint=f"Did you mean '{guess}'?" if guess else None,
            )
        if not (isinstance(value, str) or (value is None and key in ("system", "default_system"))):
            raise UserError(f"chat template {path}: '{key}' must be a text, not {value!r}")
    result: dict[str, Any] = {"name": path.stem, **values}
    if "jinja" not in values:
        result = {"start": "{bos}", "end": "{eos}", **result}
        for key, needed in (("user", ("{content}",)), ("assistant", ("{content}", "{end}"))):
            places = [str(result.get(key, "")).find(mark) for mark in needed]
            counts = [str(result.get(key, "")).count(mark) for mark in needed]
            if set(counts) != {1} or places != sorted(places):
                raise UserError(f"chat template {path}: '{key}' must hold {' and then '.join(needed)} once")
        if result.get("system") is not None and result["system"].count("{content}") != 1:
            raise UserError(f"chat template {path}: 'system' must hold {{content}} once")
        if not result["end"]:
            raise UserError(f"chat template {path}: 'end' must not be empty: a model could never stop")
    return result


def _bind(values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Put the tokenizer's special tokens into a template."""
    jinja = values.get("jinja")
    names = ["bos_token", "eos_token", *(special_names(jinja) if jinja is not None else [])]
    special = {name: str(token) for name in names if (token := getattr(tokenizer, name, None))}
    if "eos_token" not in special and "{eos}" in str(values.get("end")):
        raise UserError(
            f"template '{values['name']}' ends answers with the end-of-sequence token, but the tokenizer has none",
            hint="Write a template in YAML with an 'end' of your own.",
        )
    filled = dict(values)
    for key in ("start", "system", "user", "assistant", "end", "default_system"):
        if isinstance(filled.get(key), str):
            text = filled[key].replace("{bos}", special.get("bos_token", ""))
            filled[key] = text.replace("{eos}", special.get("eos_token", ""))
    return ChatTemplate.from_dict({**filled, "special": special})

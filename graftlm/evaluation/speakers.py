"""Open a base with adapter folders, and give each adapter the chat template that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.errors import UserError, nearest, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftlm.adapters.model import AdaptedModel
    from graftlm.adapters.routing import Stack
    from graftlm.data.heads import HeadSettings
    from graftlm.data.instances import Message
    from graftlm.data.templates import ChatTemplate
    from graftlm.generation.requests import Request, RequestId, SamplingSettings

BASE = "base"  # what the bare base is called where adapters have names


@dataclass(frozen=True)
class Speaker:
    """An adapter, or the bare base (``name`` None), that answers, with its own rendering and ends of answers.

    ``head``: it predicts these labels, and writes no text. ``reads_source``: its base is an encoder-decoder.
    ``folder``: where the adapter lies.
    """

    name: str | None
    stack: Stack
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    head: HeadSettings | None = None
    reads_source: bool = False
    folder: Path | None = None

    @property
    def label(self) -> str:
        """What it is called on the screen."""
        return BASE if self.name is None else self.name

    def request(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingSettings,
        request_id: RequestId | None = None,
    ) -> Request:
        """The request for this speaker's answer to a conversation.

        Raises:
            UserError: its template has no place for these messages.
        """
        from graftlm.data.labelled import render_source
        from graftlm.generation.requests import Request

        if self.reads_source:
            prompt = render_source(self.template, messages, tokenizer)
        else:
            prompt = tuple(self.template.render_prompt(messages, tokenizer))
        ends = replace(sampling, stop_ids=self.stop_ids, stop=(*sampling.stop, *self.stop))
        return Request(prompt, self.stack or None, ends, request_id)


@dataclass(frozen=True)
class Opened:
    """A base with adapters. ``adapters`` are the speakers of the folders, in their order; ``notes`` are for people."""

    model: AdaptedModel
    tokenizer: PreTrainedTokenizerBase
    base: Speaker
    adapters: tuple[Speaker, ...]
    notes: tuple[str, ...] = ()

    @property
    def speakers(self) -> tuple[Speaker, ...]:
        """The adapters, then the bare base."""
        return (*self.adapters, self.base)

    def speaker(self, name: str) -> Speaker:
        """The adapter called ``name``, a form of one (``name@4``), or "base".

        Raises:
            UserError: there is none; it names those that exist.
        """
        for speaker in self.speakers:
            if speaker.label == name:
                return speaker
        owner, at, _ = name.rpartition("@")
        for speaker in self.adapters:
            if at and speaker.label == owner:
                self.model.adapter(name)  # says which forms there are
                return replace(speaker, name=name, stack=(*speaker.stack[:-1], name))
        raise unknown_name("adapter", name, [speaker.label for speaker in self.speakers])


def split_form(folder: Path) -> tuple[Path, str | None]:
    """A folder, and which form of its adapter is meant: ``adapters/mine@4`` is the form 4 of ``adapters/mine``."""
    owner, at, form = folder.name.rpartition("@")
    if not at or not owner or folder.exists():
        return folder, None
    return folder.with_name(owner), form


def check_folders(folders: Sequence[Path]) -> None:
    """Find a misspelt path before torch is imported, which takes seconds.

    Raises:
        UserError: there is no such folder.
    """
    for folder, _form in map(split_form, folders):
        if not folder.is_dir():
            beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
            near = nearest(folder.name, beside)
            raise UserError(
                f"there is no adapter folder {folder}",
                hint=f"Did you mean {folder.parent / near}?" if near else "graftlm adapters list FOLDER finds them.",
            )


def open_adapters(
    folders: Sequence[Path],
    base: str | None = None,
    *,
    chat_template: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
) -> Opened:
    """Load a base and adapter folders; a run's folder stands for all of its adapters.

    ``base`` None is the base that the adapters name, or "tiny" if there are none. ``chat_template`` serves the bare
    base and adapters that store none. An adapter that was trained on top of others is opened with them, as a stack.
    ``FOLDER@4`` opens an adapter in that form, such as a DyLoRA at rank 4.

    Raises:
        UserError: a folder holds no adapter, adapters name different bases, one does not fit, or its template was
            changed.
    """
    from graftlm.adapters.model import AdaptedModel

    asked = [(folder, form) for given, form in map(split_form, folders) for folder in find_adapters([given])]
    once = {(folder.resolve(), form): (folder, form) for folder, form in reversed(asked)}
    found = [(folder, form, *_names(folder)) for folder, form in reversed(once.values())]
    chosen = base or _common_base([(folder, source) for folder, _, _, source in found])
    model = AdaptedModel.from_pretrained(chosen, dtype=dtype, device=device)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    opener = _Opener(model, tokenizer, chat_template)
    adapters = tuple(opener.open(folder, name, form) for folder, form, name, _ in found)
    return Opened(model, tokenizer, opener.bare(), adapters, tuple(opener.notes))


def open_beside(opened: Opened, folder: Path) -> Speaker:
    """One more adapter on the base that is open; it is not among the speakers.

    Raises:
        UserError: the folder holds no adapter, or one of another base.
    """
    found = find_adapters([folder])
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} adapters", hint=f"Name one of them, such as {found[0]}.")
    opener = _Opener(opened.model, opened.tokenizer, "auto")
    return opener.open(found[0], _names(found[0])[0])


def find_adapters(folders: Sequence[Path]) -> list[Path]:
    """The adapter folders that ``folders`` name: themselves, or those of a run's folder; each once.

    Raises:
        UserError: there is no such folder, or no adapter in it.
    """
    from graftlm.adapters.files import is_adapter_folder, read_json
    from graftlm.adapters.stored import CONFIG

    found: dict[Path, Path] = {}
    for folder in folders:
        below: list[Path] = [folder]
        if folder.is_dir() and not is_adapter_folder(folder):
            inside = folder / "adapters" if (folder / "adapters").is_dir() else folder
            below = sorted(
                path for path in inside.iterdir() if not path.name.startswith(".") and is_adapter_folder(path)
            )
            if not below and (folder / "recipe.yaml").exists():
                raise UserError(f"the run in {folder} has saved no adapters yet", hint="They are saved at its end.")
        if not below or (below == [folder] and not is_adapter_folder(folder)):
            read_json(folder, CONFIG)  # says what is missing, and what is nearby
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values())


class _Opener:
    """Loads adapters one by one, each folder once."""

    def __init__(self, model: AdaptedModel, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.notes: list[str] = []
        self._loaded: dict[Path, str] = {}

    def bare(self) -> Speaker:
        """The base without adapters."""
        return self._speaker(None, (), self._default())

    def open(self, folder: Path, name: str, form: str | None = None) -> Speaker:
        """An adapter, in one of its forms, with those that it was trained on top of."""
        under = tuple(self._load(path) for path in self._under(folder))
        loaded = self._load(folder, name)
        speaking = loaded if form is None else f"{loaded}@{form}"
        self.model.adapter(speaking)
        speaker = self._speaker(speaking, (*under, speaking), self._template(folder, loaded))
        return replace(speaker, folder=folder)

    def _load(self, folder: Path, name: str | None = None) -> str:
        key = folder.resolve()
        if key not in self._loaded:
            wanted, number = name or key.name, 2
            unique = wanted
            while unique in self.model.adapters or unique == BASE:
                unique, number = f"{wanted}-{number}", number + 1
            self._loaded[key] = self.model.load(folder, name=unique)
        return self._loaded[key]

    def _under(self, folder: Path) -> list[Path]:
        from graftlm.adapters.files import is_adapter_folder, read_notes

        paths = [Path(path) for path in read_notes(folder).get("under") or []]
        for path in paths:
            if not is_adapter_folder(path):
                raise UserError(
                    f"the adapter {folder} was trained on top of {path}, and there is no adapter there",
                    hint="Put it back, or run the command in the folder that this path starts from.",
                )
        return paths

    def _template(self, folder: Path, name: str) -> ChatTemplate:
        """The template in the adapter's notes; its hash says whether it is the one of training."""
        from graftlm.data.prompt_template import template_from_dict

        notes = self.model.notes.get(name, {})
        if not notes.get("template"):
            default = self._default()
            self.notes.append(f"{folder} stores no chat template; '{default.name}' is used (--chat-template)")
            return default
        template = template_from_dict(notes["template"])
        stored = notes.get("template_hash")
        if stored is not None and stored != template.hash:
            raise UserError(
                f"{folder}: the chat template in graftlm.json is not the one of training "
                f"(hash {template.hash[:12]}, of training {str(stored)[:12]})",
                hint="Somebody edited it; copy the adapter folder again.",
            )
        return template

    def _default(self) -> ChatTemplate:
        from graftlm.data.templates import resolve_chat_template

        return resolve_chat_template(self.chat_template, self.tokenizer, self.model.kind)

    def _speaker(self, name: str | None, stack: Stack, template: ChatTemplate) -> Speaker:
        from graftlm.evaluation.labels import stored_head

        stop = template.stop_text(self.tokenizer)
        ends = template.stop_ids(self.tokenizer), (stop,) if stop else ()
        head, two = stored_head(self.model, stack), self.model.kind == "encoder-decoder"
        return Speaker(name, stack, template, *ends, head=head, reads_source=two)


def _names(folder: Path) -> tuple[str, str | None]:
    """An adapter's name and the base that it names."""
    from graftlm.adapters.files import read_config, read_notes
    from graftlm.base.loading import EMBEDDED, PACKAGED

    notes: dict[str, Any] = read_notes(folder)
    base = notes.get("base") or {}
    # The name of a base that comes with graftlm or a package is good on every machine; its folder is not.
    source = base.get("name") if base.get("name") in (*EMBEDDED, *PACKAGED) else base.get("source")
    return folder.resolve().name, source or read_config(folder).get("base_model_name_or_path")


def _common_base(sources: Sequence[tuple[Path, str | None]]) -> str:
    """The one base that the adapters name."""
    named = {source: folder for folder, source in reversed(sources) if source}
    if len(named) > 1:
        listed = "; ".join(f"{folder} of {source}" for source, folder in named.items())
        raise UserError(
            f"these adapters are of different bases: {listed}",
            hint="Open them one by one. If it is one base in several places, name one: --base FOLDER.",
        )
    if sources and not named:
        raise UserError(f"{sources[0][0]} does not say which base it is for", hint="Name it: --base FOLDER_OR_NAME")
    return next(iter(named), "tiny")

"""graftlm chat: talk in the terminal to a base and its adapters, one at a time or side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from graftlm.cli._sampling import (
    FrequencyPenalty,
    Grammar,
    JsonSchema,
    LogitBias,
    MaxNewTokens,
    MinP,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Stop,
    Temperature,
    TopK,
    TopP,
    check_constraint,
    parse_biases,
    read_constraint,
    read_schema,
    token_biases,
)
from graftlm.cli.console import console, errors, print_error
from graftlm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from graftlm.data.instances import Message
    from graftlm.evaluation.speakers import Opened, Speaker
    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import Request, SamplingSettings

HELP = """/use NAME     talk to that adapter
/base         talk to the bare base
/all          let every adapter and the base answer side by side
/list         who there is, and who answers
/system TEXT  set the system message, or without TEXT none, and start afresh
/reset        forget the conversations
/quit         leave, as do Ctrl-D and Ctrl-C (in an answer, Ctrl-C stops the answer)"""


def chat(
    adapters: Annotated[list[Path] | None, typer.Argument(help="Folders of adapters or of runs.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, if not the one that the adapters name.")] = None,
    message: Annotated[
        list[str] | None, typer.Option("--message", "-m", help="Say this, print the answer and leave. Repeatable.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    use: Annotated[str | None, typer.Option(help="Who answers at first: an adapter's name, or base.")] = None,
    side_by_side: Annotated[bool, typer.Option("--all", help="Let every adapter and the base answer.")] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.9,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    stop: Stop = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    seed: Annotated[int | None, typer.Option(help="The same answers again. Default: new ones each time.")] = None,
    chat_template: Annotated[str, typer.Option(help="For the base, and adapters that store none.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the base.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Talk to adapters: switch between them with /use NAME, or see them side by side with /all."""
    from graftlm.evaluation.speakers import check_folders, open_adapters

    check_folders(adapters or [])
    if any(not text.strip() for text in message or []):
        raise UserError("--message is empty", hint='Say something: --message "Hello"')
    biases = parse_biases(logit_bias)
    schema, rules = read_schema(json_schema), read_constraint(grammar, "--grammar")
    from graftlm.generation.requests import SamplingSettings

    sampling = SamplingSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        json_schema=schema,
        regex=regex,
        grammar=rules,
    )
    with errors.status("loading base and adapters …"):
        opened = open_adapters(adapters or [], base, chat_template=chat_template, dtype=dtype, device=device)
    for note in opened.notes:
        errors.print(f"[yellow]note:[/] {escape(note)}")
    sampling = replace(sampling, logit_bias=token_biases(biases, opened.model))
    check_constraint(sampling, opened.model)
    talk = Chat.of(_who_write(opened), sampling, system)
    if use is not None:
        talk.answering = (opened.speaker(use),)
    if side_by_side:
        talk.answering = opened.speakers
    if message:
        for text in message:
            talk.say(text)
    elif sys.stdin.isatty():
        _converse(talk)
    else:
        for line in sys.stdin:
            if not _take(talk, line.strip()):
                break


def _who_write(opened: Opened) -> Opened:
    """Without the adapters that predict labels.

    Raises:
        UserError: all of them do.
    """
    labelling = [speaker.label for speaker in opened.adapters if speaker.head is not None]
    writing = tuple(speaker for speaker in opened.adapters if speaker.head is None)
    if labelling and not writing:
        raise UserError(
            f"adapters that predict labels write no text: {_joined(labelling)}",
            hint="Ask for the labels of a file's rows: graftlm generate FILE --adapter FOLDER --out FILE",
        )
    if labelling:
        errors.print(f"[yellow]note:[/] {escape(_joined(labelling))} left out: labels come from graftlm generate")
    return replace(opened, adapters=writing)


def _converse(talk: Chat) -> None:
    """Lines from a person, until they leave."""
    with suppress(ImportError):
        import readline  # noqa: F401  (line editing and history in input())
    console.print(f"[bold]{escape(talk.opened.model.name)}[/] with {len(talk.opened.adapters)} adapters")
    talk.show_who()
    console.print("[dim]/help shows the commands[/]")
    while True:
        try:
            line = input("\nyou › ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not _take(talk, line.strip()):
            return


def _take(talk: Chat, line: str) -> bool:
    """Do what one line says; False if that is to leave. Mistakes are said, and the talk goes on."""
    try:
        if line.startswith("/"):
            return talk.command(line)
        if line:
            talk.say(line)
    except UserError as error:
        print_error(error)
    return True


@dataclass
class Answer:
    """One speaker's answer while it comes."""

    speaker: Speaker
    request: Request
    left_out: int
    text: str = ""
    end: str | None = None
    error: str | None = None

    @property
    def note(self) -> str:
        """What there is to say about it beside its text."""
        parts = [f"the first {self.left_out} messages no longer fit the context"] if self.left_out else []
        ends = {"length": "cut at --max-new-tokens", "context": "the context is full", "cancelled": "stopped"}
        parts += [ends[self.end]] if self.end in ends else []
        parts += [f"no answer: {self.error}"] if self.error else []
        parts += ["no words"] if self.end == "stop" and not self.text.strip() else []
        return f"({'; '.join(parts)})" if parts else ""


@dataclass
class Chat:
    """Conversations with each speaker, and who answers now."""

    opened: Opened
    engine: Engine
    sampling: SamplingSettings
    system: str | None = None
    answering: tuple[Speaker, ...] = ()
    histories: dict[str, list[Message]] = field(default_factory=dict)
    said: int = 0

    def __post_init__(self) -> None:
        self.answering = self.answering or self.opened.speakers[:1]

    @classmethod
    def of(cls, opened: Opened, sampling: SamplingSettings, system: str | None = None) -> Chat:
        """A chat with an engine that keeps what was said: a turn reads what is new in it."""
        from graftlm.generation.engine import Engine

        return cls(opened, Engine(opened.model, opened.tokenizer, keep_answers=True), sampling, system)

    # --- commands -------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Carry out a line that begins with a slash; False if it is to leave."""
        name, _, rest = line.partition(" ")
        with_text: dict[str, Callable[[str], None]] = {"/use": self._use, "/system": self._set_system}
        alone: dict[str, Callable[[], None]] = {
            "/base": lambda: self._answer_with((self.opened.base,)),
            "/all": lambda: self._answer_with(self.opened.speakers),
            "/list": self.show_who,
            "/reset": self._reset,
            "/help": lambda: console.print(HELP, markup=False),
        }
        if name in ("/quit", "/exit", "/q"):
            return False
        if name in with_text:
            with_text[name](rest.strip())
        elif name not in alone:
            raise unknown_name("command", name, [*with_text, *alone, "/quit"])
        elif rest.strip():
            raise UserError(f"{name} stands alone; '{rest.strip()}' was not read", hint="Write it on the next line.")
        else:
            alone[name]()
        return True

    def show_who(self) -> None:
        """Say who there is, and mark who answers."""
        for speaker in self.opened.speakers:
            mark = "›" if speaker in self.answering else " "
            console.print(f"{mark} {speaker.label}", markup=False, style="bold" if mark == "›" else "")

    def _use(self, name: str) -> None:
        if not name:
            raise UserError("/use needs a name", hint="/list shows the names.")
        self._answer_with((self.opened.speaker(name),))

    def _answer_with(self, speakers: tuple[Speaker, ...]) -> None:
        self.answering = speakers
        console.print(f"{_joined([s.label for s in speakers])} will answer", style="dim", markup=False)

    def _reset(self) -> None:
        self.histories.clear()
        console.print("[dim]new conversations[/]")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._reset()

    # --- answers --------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Say something to whoever answers, print the answers as they come, and remember both."""
        from graftlm.data.instances import Message

        said = Message("user", text)
        answers = [self._prepare(speaker, said, number) for number, speaker in enumerate(self.answering)]
        try:
            if len(answers) == 1:
                self._print_one(answers[0])
            elif console.is_terminal:
                self._show_live(answers)
            else:
                self._print_labelled(answers)
        except KeyboardInterrupt:
            for answer in answers:
                answer.end = answer.end or "cancelled"
            console.print(" [dim](stopped)[/]")
        self.said += 1
        for answer in answers:
            if answer.text.strip() and answer.error is None:  # an empty answer could not be rendered as a turn
                history = self.histories.setdefault(answer.speaker.label, [])
                history += [said, Message("assistant", answer.text.strip())]

    def _prepare(self, speaker: Speaker, said: Message, number: int) -> Answer:
        """The request for one speaker. The oldest turns are left out where they no longer fit."""
        from graftlm.adapters.routing import mix_seed
        from graftlm.data.instances import Message

        seed = self.sampling.seed
        sampling = self.sampling if seed is None else replace(self.sampling, seed=mix_seed(seed, self.said))
        context = self.opened.model.room(speaker.stack)
        room = context - min(self.sampling.max_new_tokens, context // 4)
        start = [Message("system", self.system)] if self.system else []
        # A template that holds one question has no place for those before it.
        history = self.histories.get(speaker.label, []) if speaker.template.turns is None else []
        turns = [*history, said]
        left_out = 0
        while True:
            messages = [*start, *turns[left_out:]]
            request = speaker.request(messages, self.opened.tokenizer, sampling, f"{self.said}.{number}")
            if self.opened.model.count_words(request.prompt_ids) <= room or left_out + 2 >= len(turns):
                return Answer(speaker, request, left_out)
            left_out += 2

    def _run(self, answers: Sequence[Answer], show: Callable[[Answer, str], None]) -> None:
        """Run the answers in one batch; ``show`` gets each piece of text as it comes."""
        by_id = {answer.request.id: answer for answer in answers}
        with closing(self.engine.stream([answer.request for answer in answers])) as events:
            for event in events:
                answer = by_id[event.request_id]
                piece = event.text if answer.text else event.text.lstrip()
                answer.text += piece
                if event.completion is not None:
                    answer.end, answer.error = event.completion.finish_reason, event.completion.error
                if piece or answer.end:
                    show(answer, piece)

    def _print_one(self, answer: Answer) -> None:
        if console.is_terminal:
            console.print(f"[bold cyan]{escape(answer.speaker.label)} ›[/] ", end="")
        self._run([answer], lambda _answer, piece: _write(piece))
        console.print(f" {answer.note}" if console.is_terminal else "", style="dim", markup=False)
        if answer.note and not console.is_terminal:  # into a pipe goes the answer and nothing else
            errors.print(answer.note, style="dim", markup=False)

    def _print_labelled(self, answers: Sequence[Answer]) -> None:
        self._run(answers, lambda _answer, _piece: None)
        for answer in answers:
            console.print(f"{answer.speaker.label}: {answer.text.strip()}", markup=False, soft_wrap=True)
            if answer.error is not None:
                errors.print(f"{answer.speaker.label}: {answer.note}", style="dim", markup=False)

    def _show_live(self, answers: Sequence[Answer]) -> None:
        def table() -> Table:
            rows = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 1, 0))
            rows.add_column(style="bold cyan", no_wrap=True)
            rows.add_column(overflow="fold")
            for answer in answers:
                rows.add_row(answer.speaker.label, Text(answer.text.strip()).append(f" {answer.note}", style="dim"))
            return rows

        with Live(table(), console=console, refresh_per_second=8, vertical_overflow="visible") as live:
            self._run(answers, lambda _answer, _piece: live.update(table()))


def _write(piece: str) -> None:
    """A piece of an answer, as it is, at once."""
    console.file.write(piece)
    console.file.flush()


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

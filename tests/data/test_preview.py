from __future__ import annotations

from typer.testing import CliRunner

from graftlm.cli.data import app
from graftlm.data.instances import Instance, Message
from graftlm.data.prepare import prepare
from graftlm.data.preview import as_text, draw, histogram, token_texts, totals
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError


def encoded(tiny, question, answer):
    instance = Instance((Message("user", question), Message("assistant", answer)), "s", 1)
    return prepare([instance], resolve_chat_template("plain", tiny), tiny)


def test_tokens_are_made_visible(tiny):
    data = encoded(tiny, "a\tb", "你 c")
    tokens = token_texts(data.rows[0], tiny)
    assert sum(token.count for token in tokens) == len(data.rows[0].ids)
    text = as_text(tokens)
    assert "→" in text
    assert "⟦你³|·c|<eos>⟧|⏎" in text
    assert [token.text for token in tokens if token.special] == ["<bos>", "<eos>"]


def test_histogram():
    bars = histogram([3, 4, 11, 48])
    assert [(bar.low, bar.high, bar.rows) for bar in bars][:3] == [(0, 4, 2), (5, 9, 0), (10, 14, 1)]
    assert sum(bar.rows for bar in bars) == 4
    assert draw(bars, width=4)[0] == " 0 to  4  ████ 2"
    assert histogram([]) == []
    assert draw([]) == []


def test_totals(tiny):
    data = encoded(tiny, "q", "a")
    assert totals(data).supervised == 2
    assert totals(data).tokens == len(data.rows[0].ids)


def run(*arguments):
    return CliRunner().invoke(app, ["preview", *map(str, arguments)])


def test_command(write):
    rows = [{"instruction": f"say {i}", "input": "", "output": "word " * i, "id": i} for i in range(20)]
    result = run(write("a.json", rows), "--rows", 1, "--max-length", 24)
    assert result.exit_code == 0, result.output
    for part in (
        "read as Alpaca: 20 rows",
        "columns not used: id",
        "⟦",
        "empty answer",
        "longer than the context",
    ):
        assert part in result.output
    assert "19 of 20" in result.output


def test_command_with_patterns_and_variables(write):
    path = write("a.csv", "text,label\n[bold]{{name}} fine,good\n")
    result = run(
        path,
        "--prompt",
        "{text}?",
        "--answer",
        "{label}",
        "--train-on",
        "user,assistant",
        "--set",
        "name=Ada",
    )
    assert result.exit_code == 0, result.output
    assert "columns by pattern: 1 row" in result.output
    assert "[bold]Ada" in result.output.replace("|", "").replace("·", "")  # no markup is read in data
    bad = run(path, "--prompt", "{txt}", "--answer", "{label}")
    assert isinstance(bad.exception, UserError)
    assert isinstance(run(path, "--set", "name").exception, UserError)

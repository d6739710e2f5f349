"""Collections: every row accounted for, users kept apart, the same bits again, and the command."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from graftlm.cli.data import app
from graftlm.data.collecting.collect import Settings, collect, split_of
from graftlm.data.collecting.folder import prompt_id, read_corrections, read_prompts
from graftlm.data.collecting.use_cases import use_cases
from graftlm.errors import UserError

SALT = b"a salt for the tests alone"
TOPICS = "rivers chess cheese violins trains volcanoes gardens kites lanterns maps clocks bridges"


def row(text: str, user: object = "ada", consent: object = True) -> dict[str, object]:
    return {"prompt": text, "user": user, "consent": consent}


@pytest.fixture
def log(write):
    def to(rows: list[dict[str, object]], name: str = "log.jsonl") -> Path:
        return write(name, rows)

    return to


def test_every_row_is_kept_or_counted(log, tmp_path):
    rows = [
        row("Write a poem about the sea"),
        row("write a poem about the sea!", "bob"),
        row("What is rain?", None),
        row("What is snow?", ""),
        row("What is hail?", consent=None),
        row("What is fog?", consent="no"),
        row("What is dew?", consent="perhaps"),
        row("", "bob"),
        {"prompt": 7, "user": "bob", "consent": 1},
        row("ada@example.org", "bob"),
        row("Mail ada@example.org: how do I get to 203.0.113.9?", 12, "yes"),
    ]
    report = collect([log(rows)], tmp_path / "out", Settings(salt=SALT))
    assert report.read == len(rows) == report.kept + sum(report.dropped.values())
    assert report.dropped == {
        "duplicate": 1,
        "no user id": 2,
        "no consent mark": 1,
        "consent not given": 1,
        "consent mark not understood": 1,
        "empty prompt": 1,
        "prompt is not text": 1,
        "nothing but personal data or signs": 1,
    }
    assert report.examples["no user id"] == ["log.jsonl:3", "log.jsonl:4"]
    assert report.personal == {"email": 2, "ip": 1}
    prompts = {one["row"]: one for one in read_prompts(tmp_path / "out")}
    assert set(prompts) == {1, 11}
    assert prompts[11]["prompt"] == "Mail <EMAIL>: how do I get to <IP>?"
    assert prompts[11]["removed"] == {"email": 1, "ip": 1}
    stored = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert stored["dropped"] == report.dropped
    assert stored["personal"] == report.personal
    assert SALT.decode() not in json.dumps(stored)


def test_no_user_over_the_limit(log, tmp_path):
    rows = [row(f"Explain {topic} in {n} words", "ada") for n, topic in enumerate(TOPICS.split())]
    report = collect([log(rows)], tmp_path / "out", Settings(per_user=5))
    assert report.kept == 5
    assert report.dropped == {"over the limit of this user": 7}


def test_names_of_users_say_nothing(log, tmp_path):
    rows = [
        row(f"Explain {topic}", user) for topic, user in zip(TOPICS.split(), ["ada", "bob", 5, 5.0] * 3, strict=True)
    ]
    path = log(rows)
    collect([path], tmp_path / "a", Settings(salt=SALT))
    collect([path], tmp_path / "b", Settings(salt=b"another salt, also long"))
    a, b = list(read_prompts(tmp_path / "a")), list(read_prompts(tmp_path / "b"))
    assert len({one["user"] for one in a}) == 3  # 5 and 5.0 are one user
    assert not {one["user"] for one in a} & {one["user"] for one in b}
    assert [(one["row"], one["split"]) for one in a] == [(one["row"], one["split"]) for one in b]
    assert all(len(one["user"]) == 16 for one in a)


def test_the_same_bits_again(log, tmp_path):
    path = log([row(f"Explain {topic} to {user}", user) for topic in TOPICS.split() for user in "abcdef"])
    for name in "xy":
        collect([path], tmp_path / name, Settings(salt=SALT))
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "use_cases.csv", "report.json"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    assert not list((tmp_path / "x").glob(".collect-*"))


def test_the_number_of_processes_changes_nothing(log, tmp_path):
    words = TOPICS.split()
    rows = [row(f"Tell me {n % 90} things about {words[n % 12]}, {words[n % 7]}", f"user {n % 40}") for n in range(700)]
    rows += [row("Mail ada@example.org", "bob"), row("", "bob"), row("再见，我叫王小明。", "eve", "no")]
    file = log(rows)
    for processes in (1, 2, 3):
        collect([file], tmp_path / str(processes), Settings(salt=SALT), processes=processes)
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "use_cases.csv", "report.json"):
        one, *others = [(tmp_path / str(processes) / name).read_bytes() for processes in (1, 2, 3)]
        assert others == [one, one]


@given(
    st.lists(st.tuples(st.text("abcdefgh", min_size=1, max_size=3), st.integers(0, 10**9)), max_size=60), st.integers()
)
def test_no_user_is_in_two_splits(tmp_path_factory, rows, seed):
    """Whatever the users and the seed: each user has one split, which no other row or order changes."""
    folder = tmp_path_factory.mktemp("splits")
    if not rows:
        return
    path = folder / "log.jsonl"
    lines = [json.dumps(row(f"Explain the number {number}", user)) for user, number in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = Settings(seed=seed, shares=(0.5, 0.25, 0.25), salt=SALT)
    collect([path], folder / "out", settings)
    splits: dict[str, set[str]] = {}
    for one in read_prompts(folder / "out"):
        splits.setdefault(one["user"], set()).add(one["split"])
        assert one["split"] == split_of(rows[one["row"] - 1][0], seed, settings.shares)
    assert all(len(names) == 1 for names in splits.values())


def test_shares_of_users():
    names = [split_of(f"user{n}", 0, (0.8, 0.1, 0.1)) for n in range(5000)]
    assert 0.78 < names.count("train") / 5000 < 0.82
    assert 0.085 < names.count("test") / 5000 < 0.115
    assert names != [split_of(f"user{n}", 1, (0.8, 0.1, 0.1)) for n in range(5000)]


def database(path: Path, tables: tuple[str, ...] = ("queries",)) -> Path:
    with sqlite3.connect(path) as made:
        for table in (name.replace('"', '""') for name in tables):
            made.execute(f'CREATE TABLE "{table}" (asked TEXT, who INTEGER, ok INTEGER)')
            rows = [("Why is the sky blue?", 1, 1), ("How deep is the sea?", 2, 0), ("Who built Rome?", None, 1)]
            made.executemany(f'INSERT INTO "{table}" VALUES (?, ?, ?)', rows)
    made.close()
    return path


def test_sqlite(tmp_path):
    path = database(tmp_path / "log.db")
    report = collect([path], tmp_path / "out", Settings(prompt="asked", user="who", consent="ok"))
    assert report.kept == 1
    assert report.dropped == {"consent not given": 1, "no user id": 1}


def test_sqlite_with_several_tables(tmp_path):
    path = database(tmp_path / "log.sqlite", ("a", 'b "c"'))
    with pytest.raises(UserError, match="2 tables: a, b"):
        collect([path], tmp_path / "out")
    with pytest.raises(UserError, match="no table 'd'"):
        collect([path], tmp_path / "out", Settings(table="d"))
    columns = {"prompt": "asked", "user": "who", "consent": "ok"}
    assert collect([path], tmp_path / "out", Settings(table='b "c"', **columns)).kept == 1


def test_a_log_without_consent_is_refused(log, tmp_path):
    path = log([{"prompt": "Why?", "user": "ada"}])
    with pytest.raises(UserError, match="no column of the consent; there are: prompt, user") as error:
        collect([path], tmp_path / "out")
    assert "--consent" in str(error.value.hint)
    with pytest.raises(UserError, match="no column 'agreed'"):
        collect([path], tmp_path / "out", Settings(consent="agreed"))


def test_marks_that_mean_yes(log, tmp_path):
    path = log(
        [row(f"Explain {topic}", consent=mark) for topic, mark in zip(TOPICS.split(), ["v2", "v1", True], strict=False)]
    )
    report = collect([path], tmp_path / "out", Settings(consent_values=("V2",)))
    assert report.kept == 1
    assert report.dropped == {"consent not given": 2}


def test_a_broken_log_leaves_an_earlier_collection(log, write, tmp_path):
    collect([log([row("Why is the sky blue?")])], tmp_path / "out")
    broken = write("broken.jsonl", json.dumps(row("Why?")) + '\n{"prompt": "Wh\n')
    with pytest.raises(UserError, match="row 2 is broken JSON"):
        collect([broken], tmp_path / "out", overwrite=True)
    assert [one["prompt"] for one in read_prompts(tmp_path / "out")] == ["Why is the sky blue?"]
    assert not list((tmp_path / "out").glob(".collect-*"))


def test_corrections_win(log, write, tmp_path):
    path = log([row("Tell me about rivers"), row("Write about lakes")])
    by_hand = write("hand.jsonl", [{"id": prompt_id("Write about lakes"), "use_case_by_hand": "Open QA"}])
    corrections = read_corrections(by_hand, use_cases())
    report = collect([path], tmp_path / "out", corrections={**corrections, "gone": "other"})
    assert (report.corrected, report.corrections_unused) == (1, 1)
    lakes = next(one for one in read_prompts(tmp_path / "out") if "lakes" in one["prompt"])
    assert (lakes["use_case"], lakes["rule"]) == ("open QA", "by hand")
    again = read_corrections(tmp_path / "out" / "use_cases.csv", use_cases())
    assert again == corrections


def test_unknown_use_case_by_hand(write):
    path = write("hand.csv", "id,use_case_by_hand\nx,\ny,opn QA\n")
    with pytest.raises(UserError, match="row 2: unknown use case 'opn QA'") as error:
        read_corrections(path, use_cases())
    assert "open QA" in str(error.value.hint)


def test_command(log, tmp_path):
    path = log(
        [row(f"{topic}: write to me@example.org about {topic}", n % 3) for n, topic in enumerate(TOPICS.split())]
    )
    run = CliRunner().invoke
    arguments = ["collect", str(path), "--out", str(tmp_path / "out"), "--salt-file", str(tmp_path / "salt")]
    result = run(app, [*arguments, "--demonstrations", str(tmp_path / "d.csv"), "--demonstration-rows", "4"])
    assert result.exit_code == 0, result.output
    assert "read 12 rows, kept 12" in result.output
    assert "12 email (in 12 rows)" in result.output
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0
    assert len((tmp_path / "d.csv").read_text(encoding="utf-8-sig").splitlines()) == 5
    again = run(app, arguments)
    assert isinstance(again.exception, UserError)
    assert "--overwrite" in str(again.exception.hint)
    first = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert run(app, [*arguments, "--overwrite"]).exit_code == 0
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == first


@pytest.mark.parametrize("shares", ["0.9,0.1", "a,b,c", "0.5,0.1,0.1"])
def test_bad_shares(log, tmp_path, shares):
    path = log([row("Why?")])
    result = CliRunner().invoke(app, ["collect", str(path), "--out", str(tmp_path / "out"), "--splits", shares])
    assert isinstance(result.exception, UserError)


def test_nothing_left_is_an_error_that_leaves_nothing(log, tmp_path):
    path = log([row("What is rain?"), row("What is snow?", consent=False)])
    arguments = ["collect", str(path), "--out", str(tmp_path / "new" / "out"), "--consent-value", "v2"]
    said = str(CliRunner().invoke(app, arguments).exception)
    assert (
        "no prompt is left of 2 rows, and nothing is written:\n  2 × consent not given, for example log.jsonl:1" in said
    )
    assert not (tmp_path / "new" / "out").exists()
    with pytest.raises(UserError, match="no prompt is left of 1 row, and nothing is written"):
        collect([log([row("")], "empty.jsonl")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_is_asked_for_is_replaced(log, tmp_path):
    """In Python as on the command line: an earlier collection, and files of others with the names of one."""
    path, place = log([row("Why is the sky blue?")]), tmp_path / "out"
    place.mkdir()
    (place / "train.jsonl").write_text("mine")
    (place / "letter.txt").write_text("dear")
    command = ["collect", str(path), "--out", str(place)]
    words = r"out: train\.jsonl would be replaced, and there is no whole collection"
    with pytest.raises(UserError, match=words):
        collect([path], place)
    assert "train.jsonl would be replaced" in str(CliRunner().invoke(app, command).exception)
    assert (place / "train.jsonl").read_text() == "mine"
    assert collect([path], place, overwrite=True).kept == 1
    with pytest.raises(UserError, match="there is a collection already"):
        collect([path], place)
    with pytest.raises(UserError, match="no prompt is left"):  # the earlier one stays
        collect([log([row("")], "empty.jsonl")], place, overwrite=True)
    assert [one["prompt"] for one in read_prompts(place)] == ["Why is the sky blue?"]
    assert (place / "letter.txt").read_text() == "dear"

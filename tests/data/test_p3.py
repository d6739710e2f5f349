"""P3 rows as instances, and PromptSource templates against what upstream made of them."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import jinja2
import pytest
from jinja2 import nodes

from graftlm.data.formats import RowProblem
from graftlm.data.p3 import family_of
from graftlm.data.prepare import load_instances
from graftlm.data.promptsource import PromptTemplate, load_promptsource, to_instance
from graftlm.data.readers import read_rows


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("glue_mrpc_want_to_know", "paraphrase"),
        ("glue/sst2", "sentiment"),
        ("wiki_qa_Is_This_True_", "closed-book"),
        ("wiki_bio_who", "structure-to-text"),
        ("paws_labeled_final_Concatenation", "paraphrase"),
        ("yelp_review_full_this_place", "sentiment"),
        ("glue", ""),
        ("something_else", ""),
        ("", ""),
    ],
)
def test_family(name, family):
    assert family_of(name) == family


def test_rows_keep_their_template(tmp_path):
    row = {"prompt": "Good?", "completion": "yes"}
    rows = [
        {**row, "template": "imdb_Reviewer_Enjoyment"},
        {**row, "template": "own", "task": "mine", "language": "en", "licence": "CC0", "user": "u1"},
        row,
        {**row, "user": "somebody@example.org"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load_instances(path)
    origins = [instance.provenance for instance in loaded.items]
    assert [(o.task, o.template) for o in origins] == [
        ("sentiment", "imdb_Reviewer_Enjoyment"),
        ("mine", "own"),
        ("", ""),
        ("", ""),
    ]
    assert (origins[1].language, origins[1].licence, origins[1].user) == ("en", "CC0", "u1")
    assert origins[3].user == ""
    assert loaded.ignored == ()


@pytest.fixture(scope="module")
def upstream(real_data) -> dict[str, list[tuple[str, str]]]:
    """Prompts and completions by the name of their template."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for _, row in read_rows(real_data / "instructions" / "p3_sample.jsonl.gz"):
        rows[row["template"]].append((row["prompt"].strip(), row["completion"].strip()))
    return rows


def test_every_real_row_has_a_family(upstream):
    assert {name for name in upstream if not family_of(name)} == set()


@pytest.mark.slow
def test_templates_write_what_upstream_wrote(upstream, real_data):
    """A row's fields are found in the prompt that upstream made of it by one template; by every other template of the
    data set the same row must give a prompt with upstream's completion, where the sample holds that prompt."""
    templates = load_promptsource(real_data / "instructions" / "promptsource_templates.jsonl.gz")
    named = {_upstream_name(template): template for template in templates.values()}
    assert set(upstream) <= set(named)
    by_task: dict[str, list[str]] = defaultdict(list)
    for name in upstream:
        by_task[named[name].task].append(name)
    outcomes = Counter[str]()
    for names in by_task.values():
        known = {name: _completions(upstream[name]) for name in names}
        for name in names:
            for row in _rows_behind(named[name], upstream[name][:20]):
                for other in names:
                    outcomes[_compare(named[other], row, known[other])] += 1
    assert outcomes["other"] == 0
    assert outcomes["equal"] > 10000


def _completions(made: list[tuple[str, str]]) -> dict[str, set[str]]:
    completions: dict[str, set[str]] = defaultdict(set)
    for prompt, completion in made:
        completions[prompt].add(completion)
    return completions


def _compare(template: PromptTemplate, row: dict[str, object], known: dict[str, set[str]]) -> str:
    try:
        prompt, answer = (message.content for message in to_instance(template, row).messages)
    except RowProblem:
        return "does not fit"
    if prompt not in known:
        return "not in the sample"
    return "equal" if answer in known[prompt] else "other"


def _upstream_name(template: PromptTemplate) -> str:
    parts = (template.dataset, template.subset, template.name)
    return re.sub(r"[^0-9a-zA-Z]+", "_", "_".join(part for part in parts if part))


def _rows_behind(template: PromptTemplate, made: list[tuple[str, str]]) -> Iterator[dict[str, object]]:
    """The rows that a template of text and fields alone was rendered with; nothing of any other template."""
    parser = jinja2.Environment()
    parser.filters.update(choice=len, most_frequent=len)
    pattern, seen = "", set[str]()
    for output in parser.parse(template.jinja).body:
        for node in output.nodes if isinstance(output, nodes.Output) else [output]:
            if isinstance(node, nodes.TemplateData | nodes.Const):
                text = str(node.data if isinstance(node, nodes.TemplateData) else node.value)
                words = re.split(r"(\s+)", text)
                pattern += "".join(r"\s*" if word.isspace() else re.escape(word) for word in words if word)
            elif isinstance(node, nodes.Name) and node.name != "answer_choices":
                pattern += f"(?P={node.name})" if node.name in seen else f"(?P<{node.name}>.*?)"
                seen.add(node.name)
            elif _is_choice(node) and f"choice_{node.arg.name}" not in seen:
                pattern += f"(?P<choice_{node.arg.name}>.*?)"
                seen.add(f"choice_{node.arg.name}")
            else:
                return
    prompt, separator, answer = pattern.partition(re.escape("|||"))
    choices = [choice.strip() for choice in template.answer_choices.split("|||")]
    for one, other in made if separator else ():
        match = re.fullmatch(rf"\s*{prompt}\0{answer}\s*", f"{one}\0{other}", re.DOTALL)
        if match is None:
            continue
        row: dict[str, object] = {}
        for name, value in match.groupdict().items():
            if not name.startswith("choice_"):
                row[name] = value
            elif choices.count(value) == 1:
                row[name.removeprefix("choice_")] = choices.index(value)
        yield row


def _is_choice(node: nodes.Node) -> bool:
    return (
        isinstance(node, nodes.Getitem)
        and isinstance(node.node, nodes.Name)
        and node.node.name == "answer_choices"
        and isinstance(node.arg, nodes.Name)
    )

"""`datasets`' side of ``data_build.py``, which runs it with ``ROWS.jsonl PROCESSES three|one BATCH``.

The wording is written out here as plain Python: what the task template says of a description, the order of the label
words and the texts. Contents are tokenised in batches, prompt and answer each on its own, and put between the ids of
the template's texts; no description or text is tokenised twice.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import resource
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from _measure import REPOSITORY, print_result
from data_build import LONGEST, SEED

Batch = dict[str, list[Any]]
LABELS = {"pos": "positive", "neg": "negative"}
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W_]+")


class Digest:
    """What came out: rows of ids and marks, as a hash that does not depend on how they were cut into parts."""

    def __init__(self) -> None:
        self.hashes = [hashlib.sha256() for _ in range(3)]
        self.rows = 0

    def add(self, ids: Any, marks: Any, lengths: Any) -> None:
        """Flat int32, bytes and int64."""
        for digest, data in zip(self.hashes, (ids, marks, lengths), strict=True):
            digest.update(bytes(memoryview(data).cast("B")))
        self.rows += len(lengths)

    def result(self) -> dict[str, Any]:
        whole = "".join(digest.hexdigest() for digest in self.hashes)
        return {"rows": self.rows, "sha256": hashlib.sha256(whole.encode()).hexdigest()}


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def descriptions() -> list[Callable[[list[str]], str]]:
    """The task's descriptions as functions of the label words in their order."""
    from ruamel.yaml import YAML

    path = REPOSITORY / "graftlm" / "data" / "task_templates" / "sentiment.yaml"
    listed, joined = "{{ choices | listed }}", '{{ choices | join(" and ") }}'
    return [
        lambda words, text=text: text.replace(listed, " or ".join(words)).replace(joined, " and ".join(words))
        for text in YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))["descriptions"]["en"]
    ]


def worded(texts: list[Callable[[list[str]], str]]) -> Callable[[Batch], Batch]:
    def number(what: str, row: bytes) -> int:
        key = f"{SEED}/sentiment/en/False/{what}/".encode() + row
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")

    def work(batch: Batch) -> Batch:
        prompts, answers = [], []
        for text, label in zip(batch["text"], batch["label"], strict=True):
            row = hashlib.blake2b(f"label={label}\x1ftext={text.strip()}".encode(), digest_size=16).digest()
            which = number("description", row) % len(texts)
            words = random.Random(number(str(which), row)).sample(list(LABELS.values()), len(LABELS))
            prompts.append(f"{texts[which](words)}\n\nText: {text.strip()}")
            answers.append(LABELS[label])
        return {"prompt": prompts, "answer": answers}

    return work


def passes(batch: Batch) -> list[bool]:
    return [
        any(unicodedata.category(sign)[0] in "LNS" for sign in answer)
        and 1 <= len(UNIT.findall(prompt.lower())) <= LONGEST
        and 1 <= len(UNIT.findall(answer.lower())) <= 10
        for prompt, answer in zip(batch["prompt"], batch["answer"], strict=True)
    ]


def tokenised(tokenizer: Any) -> Callable[[Batch], Batch]:
    def ids(texts: list[str]) -> list[list[int]]:
        return list(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])

    begin, middle, end = ids([f"{tokenizer.bos_token}User:\n", "\nAssistant:\n", tokenizer.eos_token])
    newline = ids(["\n"])[0]

    def work(batch: Batch) -> Batch:
        rows, marks = [], []
        for prompt, answer in zip(ids(batch["prompt"]), ids(batch["answer"]), strict=True):
            front, learnt = [*begin, *prompt, *middle], [*answer, *end]
            rows.append(front + learnt + newline)
            marks.append([0] * len(front) + [1] * len(learnt) + [0] * len(newline))
        return {"input_ids": rows, "learnt": marks}

    return work


def run(path: str, processes: int, steps: str, batch_size: int) -> dict[str, Any]:
    import datasets
    import numpy
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "graftlm" / "base" / "tiny")
    word, encode = worded(descriptions()), tokenised(tokenizer)
    how = {"batched": True, "batch_size": batch_size, "num_proc": processes if processes > 1 else None}

    def whole(batch: Batch) -> Batch:
        made = word(batch)
        kept = passes(made)
        return encode({key: [v for v, keep in zip(made[key], kept, strict=True) if keep] for key in made})

    with tempfile.TemporaryDirectory() as cache:
        begin, cpu = time.perf_counter(), cpu_seconds()
        rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
        if steps == "one":
            rows = rows.map(whole, remove_columns=rows.column_names, **how)
        else:
            rows = rows.map(word, remove_columns=rows.column_names, **how)
            rows = rows.filter(passes, **how)
            rows = rows.map(encode, remove_columns=rows.column_names, **how)
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
        digest = Digest()
        for part in rows.with_format("arrow").iter(10_000):
            ids, marks = part["input_ids"].combine_chunks(), part["learnt"].combine_chunks()
            lengths = numpy.diff(ids.offsets.to_numpy()).astype(numpy.int64)
            digest.add(ids.flatten().to_numpy().astype("i4"), marks.flatten().to_numpy().astype("i1"), lengths)
    return {"seconds": seconds, "cpu_seconds": cpu, **digest.result()}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print_result(run(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))

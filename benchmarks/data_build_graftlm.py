"""graftlm's side of ``data_build.py``: run by the driver as ``data_build_graftlm.py ROWS.jsonl PROCESSES``."""

from __future__ import annotations

import sys
import time
from typing import Any

from _measure import print_result
from data_build import LONGEST, SEED
from data_build_peer import Digest, cpu_seconds


def run(path: str, processes: int) -> dict[str, Any]:
    from graftlm.base.loading import load_tokenizer
    from graftlm.data.encoding import encode_labelled
    from graftlm.data.filters import EmptyAnswer, Length
    from graftlm.data.formatting import FormatSettings
    from graftlm.data.readers import read_rows
    from graftlm.data.rendering import Conversations
    from graftlm.data.task_template import load_task_template
    from graftlm.data.templates import resolve_chat_template

    tokenizer = load_tokenizer("tiny")
    rendering = Conversations(resolve_chat_template("plain", tokenizer), tokenizer)
    template = load_task_template("sentiment")
    filters = [EmptyAnswer(), Length(prompt=(1, LONGEST), answer=(1, 10))]
    begin, cpu = time.perf_counter(), cpu_seconds()
    found = list(
        encode_labelled(
            read_rows(path), template, FormatSettings(), SEED, rendering, filters=filters, processes=processes
        )
    )
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    digest = Digest()
    for part in found:
        digest.add(part.ids, part.supervised, part.lengths)
    return {"seconds": seconds, "cpu_seconds": cpu, **digest.result()}


if __name__ == "__main__":
    print_result(run(sys.argv[1], int(sys.argv[2])))

"""Check that the public files that docs/instruction-data.md was measured on are the ones that are here.

    python scripts/check_data.py DATA            # ends with 1 if a file is missing or another one
    python scripts/check_data.py --table         # the table of the page

Source is the repository that a file was taken from, where that is known. None of the files has an address of its own
that is known: several were put into JSON lines on the way, so a fresh copy may hold the same rows in other bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """``licence`` and ``source`` are empty where none is known."""

    path: str
    sha256: str
    licence: str = ""
    source: str = ""


FILES = (
    File(
        "instructions/p3_sample.jsonl.gz",
        "ee44195aefc1621cc6d4a0d3d396cdbbc7a2eee66576b71d781e599bcade968e",
        "Apache-2.0 (templates)",
        "https://github.com/yizhongw/self-instruct",
    ),
    File(
        "pretraining/fairytaleqa_stories.jsonl.gz",
        "192d791237e0cecc8d480c8453587880ec5f9802ea22959dab8ee86b4e07ad63",
        "Apache-2.0",
        "https://github.com/uci-soe/FairytaleQAData",
    ),
    File("tasks/sst2/train.jsonl", "3637c4c7584301adf40d08bb8e751f49b54122f0e5be46c4575b0c1280d220db", "", ""),
    File("tasks/sst2/dev.jsonl", "b8703d32dfb7be3447a53661ab5ae9c40da290f3b435df1eedee143f846db562", "", ""),
    File("tasks/trec/train.jsonl", "0cd54fca73816543d8bbca089626c6d0dbe74773ccf3d5815766e8cddccdd4ba", "", ""),
    File("tasks/trec/test.jsonl", "bf760c9347efa1cd13c6e07e4dc577030f1dc0d4c5f0af2c4bea96acb325c0ff", "", ""),
    File("tasks/cola/train.jsonl", "2923fe560721f6f2e6d8bc3d66c2000a1801bc3a7eee561c684c33d25fd2e6e6", "", ""),
    File("tasks/cola/dev_in.jsonl", "8d06fdb2f3e6ab9ddf368b439c2e5138bb4d844f5a61f18a08aeebc796d4183e", "", ""),
    File("tasks/esnli/dev.jsonl.gz", "c4586d6d2811e520b53a081be45bac64253b4751dd056160881addd55b349033", "", ""),
    File("tasks/esnli/test.jsonl.gz", "4f154a0ae34941361549e49369f652679b145b008550554ded74d4026529ba20", "", ""),
    File(
        "tasks/fairytaleqa/qa.jsonl.gz",
        "918b6a07b7d854ee4c8b636edba9c6287c1430b0d5ad52c9424e85a9b73b9d7d",
        "Apache-2.0",
        "https://github.com/uci-soe/FairytaleQAData",
    ),
    File("tasks/gsm8k/train.jsonl", "ef79c9abf86f51472072ebe70d12b0d62149f4db3d505c461d86b2efffcbeeb4", "MIT", ""),
    File("tasks/gsm8k/test.jsonl", "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac", "MIT", ""),
    File(
        "tasks/xquad/xquad.en.json", "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29", "CC BY-SA", ""
    ),
    File(
        "tasks/xquad/xquad.zh.json", "691d0b3359bc6b8faa8de931dfdfe21d50a65861ae348e32a0d1a0190b0c8835", "CC BY-SA", ""
    ),
    File(
        "tasks/zh_en/tatoeba.jsonl.gz",
        "9d8985e3d91f3dcdbaf271df57c1d41694cf5543287b49e95c0acecc161b6720",
        "CC BY (Tatoeba)",
        "",
    ),
    File(
        "tasks/simplification.jsonl", "1157b544b0fae458ed0c3456fbeb57aa401efbdb1b766d47bb1122d315a6cf01", "CC BY-SA", ""
    ),
    File("tasks/chnsenticorp/all.jsonl.gz", "3cbacedd4e876a8bedc48805ce86c69ed64d25e5ad6d9b38869b6bf388fde82e", "", ""),
)


def state(folder: Path, file: File) -> str:
    """ok, missing, or the hash of the other file that is there."""
    path = folder / file.path
    if not path.is_file():
        return "missing"
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    return "ok" if found == file.sha256 else f"another file: {found}"


def table() -> str:
    """Markdown: what the files are, and where they come from."""
    lines = ["| file | licence | source | sha256 |", "|---|---|---|---|"]
    for file in FILES:
        source = f"[{file.source.removeprefix('https://github.com/')}]({file.source})" if file.source else "not known"
        lines.append(f"| {file.path} | {file.licence or 'not stated'} | {source} | `{file.sha256[:16]}…` |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="the folder with instructions, pretraining and tasks in it")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.data is None:
        parser.error("name the folder of the files, or --table")
    states = {file: state(options.data, file) for file in FILES}
    for file, found in states.items():
        print(f"{found if found in ('ok', 'missing') else 'other':<8} {file.path}")
        if found not in ("ok", "missing"):
            print(f"         {found}\n         wanted: {file.sha256}")
    if set(states.values()) != {"ok"}:
        where = {file.source for file, found in states.items() if found != "ok" and file.source}
        print("\nSources: " + (", ".join(sorted(where)) or "none is known for these files"))
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Instances as rows of Parquet, and back."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import Any

from graftlm.data.instances import ORIGINS, Instance, Message, Provenance, Verdict

_origin = attrgetter(*ORIGINS)


def row_schema() -> Any:
    """The columns of a set."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([("role", text), ("content", text), ("train", pa.bool_())])
    said = [("kind", text), ("values", pa.list_(pa.float64())), ("criterion", text), ("annotator", text)]
    verdict = pa.struct([*said, ("margin", pa.float64())])
    found = [("messages", pa.list_(message)), ("verdicts", pa.list_(verdict)), ("source", text), ("row", pa.int64())]
    return pa.schema([*found, *((name, text) for name in (*ORIGINS, "split"))])


def as_stored(instance: Instance, split: str) -> dict[str, Any]:
    """An instance as a row of :func:`row_schema`."""
    messages = [{"role": m.role, "content": m.content, "train": m.train} for m in instance.messages]
    verdicts = [{**asdict(verdict), "values": list(verdict.values)} for verdict in instance.verdicts]
    origins = dict(zip(ORIGINS, _origin(instance.provenance), strict=True))
    found = {"messages": messages, "verdicts": verdicts, "source": instance.source, "row": instance.row}
    return {**found, **origins, "split": split}


def as_instance(row: dict[str, Any]) -> Instance:
    """The instance of a row; older sets have no keys and no verdicts."""
    messages = tuple(Message(m["role"], m["content"], m["train"]) for m in row["messages"])
    provenance = Provenance(**{name: row.get(name, "") for name in ORIGINS})
    verdicts = tuple(Verdict(**{**said, "values": tuple(said["values"])}) for said in row.get("verdicts") or ())
    return Instance(messages, row["source"], row["row"], provenance, verdicts)

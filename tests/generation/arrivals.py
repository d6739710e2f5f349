"""Requests that come to an engine one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftlm import AdaptedModel
from graftlm.generation import Engine, Request


def check_arrivals(model: AdaptedModel, engine: Engine, requests: Sequence[tuple[int, Request]]) -> None:
    """Submit each request before the step that stands beside it: it gets the tokens that it gets alone."""
    done: dict[Any, tuple[int, ...]] = {}
    step = 0
    while len(done) < len(requests):
        for at, request in requests:
            if at == step:
                engine.submit(request)
        for event in engine.step():
            if event.completion is not None:
                done[event.request_id] = event.completion.token_ids
        step += 1
    for _, request in requests:
        assert done[request.id] == Engine(model).run([request])[0].token_ids
    assert not engine.busy

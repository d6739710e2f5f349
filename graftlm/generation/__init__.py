"""Generation: requests in, tokens out. One engine makes the text for chat, files, evaluation and serving."""

from graftlm.generation.asynchronous import AsyncEngine
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Completion, Request, SamplingSettings, TokenEvent

__all__ = ["AsyncEngine", "Completion", "Engine", "Request", "SamplingSettings", "TokenEvent"]

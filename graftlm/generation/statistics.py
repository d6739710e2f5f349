"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """What an engine did so far.

    ``steps`` of decoding, ``row_steps`` the sum of their rows, ``waiting_steps`` those of them while requests waited
    for a slot and ``waiting_row_steps`` their rows; tokens of prompts that were ``read``, and ``reused`` instead.
    ``loads`` of adapters from their folders, and ``page_outs``, how often one made room for others.
    """

    steps: int = 0
    row_steps: int = 0
    waiting_steps: int = 0
    waiting_row_steps: int = 0
    read: int = 0
    reused: int = 0
    loads: int = 0
    page_outs: int = 0

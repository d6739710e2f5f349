"""What the process may use and has used, and an allocator setting that does not fault pages all day."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
_LARGE = 2**31 - 1


def tune_allocator() -> bool:
    """Let glibc keep large blocks instead of handing each back to the kernel; True where that was possible.

    Training allocates and frees the same blocks of several megabytes at each layer. By default glibc maps each
    anew, and the kernel zeroes its pages: on a CPU that can be half of a training step. Settings of the user's own
    (MALLOC_…, GLIBC_TUNABLES) are left alone.
    """
    chosen_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen_by_user or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGE), (_M_TOP_PAD, 64 * 2**20))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: of the device on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = _proc_status("VmHWM")
    return status if status is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak anew (on Linux and CUDA; elsewhere it stays the peak of the process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear_refs = Path("/proc/self/clear_refs")
    try:
        clear_refs.write_text("5")
    except OSError:
        return


def used_memory(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def available_memory(device: torch.device) -> int:
    """Bytes that could still be allocated now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated: on a CPU torch has no type of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _proc_status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None

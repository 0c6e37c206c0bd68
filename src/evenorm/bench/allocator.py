"""Memory: fresh pages or warm ones, and the most that a call holds.

*Fresh* is what a process gets by default: glibc returns large blocks to the kernel, and writing into their
successors faults every page in anew. *Reused* is glibc told to keep what is freed (``mallopt``), so that each
call's outputs lie where the last call's lay, already mapped; it holds for every variant of the process, ours,
torch's, JAX's and onnxruntime's, and no interface for outputs is needed. It cannot be undone, so fresh rows come first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["can_keep", "keep_pages", "peak", "settle"]

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# From here on glibc maps and unmaps every block; below it learns to keep them.
_LARGEST_KEPT = 32 << 20


def can_keep() -> bool:
    """Whether this C library can be told to keep its pages."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def keep_pages() -> None:
    """From now on freed memory stays mapped: every later row is one of reused memory."""
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))):
        raise OSError("the C library refused to keep freed memory; leave --memory reused out")


def settle() -> None:
    """Bring glibc where any long-lived process has it, so that the order of rows does not matter.

    Its threshold for mapping rises to the largest block that was freed, up to 32 MiB.
    """
    torch.empty(_LARGEST_KEPT - (1 << 16), dtype=torch.uint8)


def peak(call: Callable[[], object]) -> int | None:
    """Bytes that one call holds at the most beyond what was held before; ``None`` where Linux cannot say.

    It was called before: what a first call makes for good is not counted.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) << 10

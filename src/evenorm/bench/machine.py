"""The machine: what the figures of a run depend on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from evenorm.kernels.environment import environment

__all__ = ["largest_cache", "line", "load", "machine", "use_threads"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_PEERS = ("torch", "jax", "onnxruntime", "transformers")


def machine() -> dict[str, str]:
    """CPU, caches, threads, instruction sets and versions, one line of text each."""
    facts = environment()
    versions = {name: _version(name) for name in _PEERS}
    return {
        "cpu": _model(),
        "cores": str(len(_cores())),
        "threads": str(torch.get_num_threads()),
        "caches": ", ".join(f"{name} {size >> 10:,} KiB" for name, size in _caches().items()) or "unknown",
        "instruction sets": facts["instruction sets"],
        "kernels": facts["kernels"],
        "triton": facts["triton"],
        "system": f"{platform.system()} {platform.release()}",
        "python": facts["python"],
        "evenorm": facts["evenorm"],
        **{name: version for name, version in versions.items() if version},
    }


def line(facts: dict[str, str]) -> str:
    """The machine in one sentence."""
    versions = ", ".join(f"{name} {facts[name]}" for name in _PEERS if name in facts)
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads; {facts['caches']}; "
        f"{facts['instruction sets']}; {versions}"
    )


def load() -> str:
    """How many processes have wanted a core in the last minute, on average."""
    return f"{os.getloadavg()[0]:.1f}"


def largest_cache() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not say."""
    return max(_caches().values(), default=32 << 20)


def use_threads(threads: int | None) -> int:
    """Give torch so many threads, and the whole process so many cores, which JAX's own pool obeys."""
    if threads is not None:
        torch.set_num_threads(threads)
        cores = sorted(_cores())
        if threads < len(cores) and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores[:threads])
    return torch.get_num_threads()


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _caches() -> dict[str, int]:
    """Data caches of one core by name, in bytes."""
    found = {}
    for index in sorted(_CACHES.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    return found


def _model() -> str:
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.exists() else ():
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

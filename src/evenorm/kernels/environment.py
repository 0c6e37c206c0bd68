"""What the kernels find on this machine: the content of `evenorm env`."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata
from pathlib import Path

import torch

from evenorm.kernels import KERNELS, triton

__all__ = ["environment"]

# What a normalization kernel can make use of, in the names of /proc/cpuinfo.
_INSTRUCTION_SETS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "asimd",
    "sve",
)
_BUILT = "built"


def environment() -> dict[str, str]:
    """Versions, threads, instruction sets and kernels, one line of text each.

    Returns:
        The lines in the order in which they are shown, by name.

    Example:
        >>> list(environment())[:4]
        ['evenorm', 'python', 'platform', 'torch']
    """
    extension = _extension()
    idle = {"cpu"} if extension != _BUILT else set()
    idle |= set() if triton.ready() else {triton.name}
    return {
        "evenorm": _version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "instruction sets": ", ".join(_instruction_sets()) or "unknown",
        "extension": extension,
        "triton": triton.state(),
        "kernels": ", ".join(k.name for k in KERNELS if k.name not in idle),
        "openmp": ", ".join(_openmp_runtimes()) or "none found",
    }


def _version() -> str:
    try:
        return metadata.version("evenorm")
    except metadata.PackageNotFoundError:
        return "not installed, run from its source"


def _instruction_sets() -> list[str]:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return [name for name in _INSTRUCTION_SETS if name in words]


def _extension() -> str:
    try:
        importlib.import_module("evenorm._cpu")
    except ModuleNotFoundError:
        return (
            "not built: the pure-Python kernels are in use. "
            "To get it, install a C++ compiler (g++) and install evenorm again."
        )
    except ImportError as error:
        return f"built, but it cannot be loaded ({error}): the pure-Python kernels are in use."
    return _BUILT


def _openmp_runtimes() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/" in line}
    names = ("libgomp", "libiomp", "libomp")
    return sorted(Path(file).name for file in files if Path(file).name.startswith(names))

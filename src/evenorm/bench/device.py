"""The device: how its calls are timed, what they hold at the most, its cache, and the copies that are its roofs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from evenorm.bench import allocator, machine, roof, stopwatch
from evenorm.bench.case import Case

__all__ = ["CPU", "DEVICES", "GPU", "Device"]

Call = Callable[[], object]


class Device(NamedTuple):
    """Where a case's tensors lie."""

    name: str
    peers: tuple[str, ...]
    """What can be measured beside ours."""
    missing: Callable[[], str | None]
    """Why nothing can be measured here, or ``None``."""
    timed: Callable[[Call, int], int]
    """Nanoseconds of so many calls."""
    peak: Callable[[Call], int | None]
    """Bytes that a call holds at the most beyond what was held before."""
    cache: Callable[[], int]
    """Bytes of the last cache before memory."""
    roofs: Callable[[Case], Mapping[str, Call]]
    """Copies of a tensor of the case's size."""
    backend: str
    """What connects processes that synchronize."""
    processes: Callable[[], int]
    """How many of them are measured."""


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no GPU here"


def _by_events(call: Call, repeats: int) -> int:
    """By the GPU's own clock: calls return before their work is done."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return round(start.elapsed_time(end) * 1e6)


def _allocated(call: Call) -> int:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _copy(case: Case) -> Mapping[str, Call]:
    source = torch.ones(case.elements, dtype=case.torch_dtype, device="cuda")
    target = torch.empty_like(source)
    return {roof.COPY: lambda: target.copy_(source)}


def _second_level() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


CPU = Device(
    "cpu",
    ("torch", "compile", "jax", "onnxruntime"),
    lambda: None,
    stopwatch.timed,
    allocator.peak,
    machine.largest_cache,
    lambda case: roof.roofs(case, torch.get_num_threads()),
    "gloo",
    lambda: 2,
)
GPU = Device(
    *("cuda", ("torch", "compile"), _no_gpu, _by_events, _allocated, _second_level, _copy),
    *("nccl", torch.cuda.device_count),
)

DEVICES = {device.name: device for device in (CPU, GPU)}

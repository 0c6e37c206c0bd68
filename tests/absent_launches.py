"""Launches kernels on a GPU that is not there: what reaches its driver, through Triton and past it.

One line of JSON for each launch: the kernel, whether Triton was asked for it, which binary it is, and its arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch

from absent_gpu import Absent, step

CALL = {"pattern": "n (g=2 [c]) [...]", "affine": "g c", "shape": (2, 4, 8, 8), "dtype": "bfloat16"}
RELU = {**CALL, "activation": "relu", "residual": True}
MASKED = {**CALL, "masked": True}
# A statistic in several pieces; rows whose parameters are another kernel's.
PIECES = {"pattern": "[n] c [...]", "affine": "c", "shape": (16, 1, 64, 64), "dtype": "float32"}
LONG = {"pattern": "... [d]", "affine": "d", "shape": (2, 20_000), "dtype": "float32"}
# A call, and how many elements after an aligned address its input begins.
STEPS: list[tuple[dict[str, Any], int]] = [
    *((CALL, 0), (CALL, 1), (CALL, 8), (RELU, 0), (MASKED, 0), (PIECES, 0), (LONG, 0)),
    *((CALL, 0), (CALL, 1), (CALL, 8), (RELU, 0), (MASKED, 0), (PIECES, 0), (LONG, 0)),
]


def said(argument: Any) -> Any:
    """An argument without its address."""
    if isinstance(argument, torch.Tensor):
        return [str(argument.dtype), list(argument.shape), argument.data_ptr() % 16 == 0]
    return [said(a) for a in argument] if isinstance(argument, tuple) else argument


class Noted(Absent):
    """A driver that notes what it is to launch."""

    def __init__(self) -> None:
        super().__init__(90)
        number = count()
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232_448},
            load_binary=lambda *_: (object(), next(number), 32, 0, 1024),
        )
        self.launches: list[dict[str, Any]] = []

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(*given: Any) -> None:
            *grid, _, binary, _, _, _, _ = given[:9]
            arguments = [said(a) for a in given[9:]]
            self.launches.append({"kernel": metadata.name, "binary": binary, "grid": grid, "arguments": arguments})

        return launch


def main() -> None:
    """Every step; for each of its launches what the driver saw, and what Triton was asked."""
    from triton.runtime import JITFunction, driver

    noted, asked = Noted(), []
    driver.set_active(noted)
    ask = JITFunction.run

    def run(self: Any, *operands: Any, **options: Any) -> Any:
        asked.append(len(noted.launches))
        return ask(self, *operands, **options)

    JITFunction.run = run
    for number, (call, offset) in enumerate(STEPS):
        before = len(noted.launches)
        step(call, offset)
        for place in range(before, len(noted.launches)):
            found = {"step": number, "asked": place in asked, **noted.launches[place]}
            sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()

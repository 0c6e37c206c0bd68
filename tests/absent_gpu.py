"""Compiles the kernels of some calls for a GPU that need not be there, down to its machine code.

One line of JSON for each kernel: the number of its call, what its programs take of the GPU, how many loads are of two
bytes each, how many instructions leave open in which order programs add, which elements each thread adds up, and which
operands there are.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch


class Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def resources(binary: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of stack and shared memory."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tools / "cuobjdump"), "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", printed)
    assert found is not None, printed
    return dict(zip(("registers", "stack", "shared"), map(int, found.groups()), strict=True))


def added(code: str) -> list[str]:
    """Of each sum the tile that is added up, and how it lies on threads and warps."""
    layouts = dict(re.findall(r"^(#\w+) = (.+)$", code, re.MULTILINE))
    tiles = re.findall(r"\}\) : \((tensor<.+?>)\)", code)
    return [re.sub(r"#\w+", lambda name: layouts[name[0]], tile) for tile in tiles]


def step(call: dict[str, Any], offset: int = 0) -> None:
    """Forward and backward of a call, on tensors of the CPU that no kernel runs on.

    Args:
        offset: so many elements after an aligned address the input begins.
    """
    from evenorm import Affine, Epilogue, Pattern
    from evenorm.kernels import Finish, triton

    pattern, affine = Pattern.parse(call["pattern"]), Affine(call["affine"], **call.get("order", {}))
    centered = call.get("centered", True)
    dtype = getattr(torch, call["dtype"])
    *rows, width = call["shape"]
    row = width + call.get("gap", 0)
    x = torch.empty(prod(rows) * row + offset, dtype=dtype)[offset:].view(*rows, row)[..., :width]
    if call.get("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    size = pattern.bind(x.shape).sizes(affine.axes)
    weight, bias = torch.ones(size), torch.zeros(size)
    residual = torch.empty_like(x) if call.get("residual") else None
    mask = torch.ones([n if axis == 0 else 1 for axis, n in enumerate(x.shape)], dtype=torch.bool)
    valid = mask if call.get("masked") else None
    finish = Finish(affine, Epilogue(call.get("activation", "identity")), weight, bias, residual)
    carried = None
    if call.get("before"):
        # What goes before, and what is carried into its gradient.
        addend, carried = torch.empty_like(x), torch.empty_like(x)
        _, x, mean, m2 = triton.forward_of_sum(x, addend, pattern, centered, 1e-5, finish)
    else:
        _, mean, m2 = triton.forward(x, pattern, centered, 1e-5, finish, valid)
    triton.backward(torch.empty_like(x), x, pattern, centered, 1e-5, mean, m2, finish, valid, carried)


def compile_all(calls: list[dict[str, Any]], capability: int) -> None:
    """The kernels of each call."""
    from triton.runtime import driver

    from evenorm.kernels.triton import device
    from evenorm.kernels.triton.prepared import Launch

    driver.set_active(Absent(capability))

    def compile_only(number: int, launch: Launch, operands: tuple[Any, ...], constants: dict[str, Any]) -> None:
        kernel, programs = launch.kernel, launch.programs
        given = (*operands, *launch.numbers)
        made = device.KERNELS[kernel].warmup(*given, grid=(programs,), **launch.constants, **constants)
        code, names = made.asm["ptx"], device.KERNELS[kernel].arg_names
        counted = {"narrow": code.count("ld.global.b16 "), "atomic": len(re.findall(r"\b(?:atom|red)\.", code))}
        found = {"call": number, "kernel": kernel, "programs": programs, **counted, **resources(made.asm["cubin"])}
        found["added"] = added(made.asm["ttgir"])
        found["given"] = [name for name, value in zip(names, given, strict=False) if value is not None]
        sys.stdout.write(f"{json.dumps(found)}\n")

    for number, call in enumerate(calls):
        device.start = partial(compile_only, number)
        step(call, call.get("offset", 0))


if __name__ == "__main__":
    compile_all(json.loads(sys.argv[1]), int(sys.argv[2]))

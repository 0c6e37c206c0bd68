"""The kernels compiled for GPUs that need not be there: nothing spilled, wide loads, no order left open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evenorm.epilogue import ACTIVATIONS
from evenorm.kernels import triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton.installed(), reason="Triton is not installed"),
]

COMPILER = Path(__file__).with_name("absent_gpu.py")
LAUNCHER = Path(__file__).with_name("absent_launches.py")

# Bytes of a thread's stack, by the generation for which the kernels are compiled.
STACK = {70: 320, 80: 160, 90: 160, 100: 160}

KERNELS = ("forward", "merge", "apply", "gradient", "grad_input", "grad_parameters")

CALLS: dict[str, dict[str, Any]] = {
    "RMSNorm": {
        "pattern": "... [d]",
        "affine": "d",
        "shape": (64, 4096),
        "dtype": "bfloat16",
        "centered": False,
        "order": {"offset": 1.0, "cast": "before"},
    },
    "LayerNorm long": {"pattern": "... [d]", "affine": "d", "shape": (8, 16_384), "dtype": "bfloat16"},
    "LayerNorm float64": {"pattern": "... [d]", "affine": "d", "shape": (64, 1024), "dtype": "float64"},
    "BatchNorm2d": {
        "pattern": "[n] c [...]",
        "affine": "c",
        "shape": (64, 64, 56, 56),
        "dtype": "float32",
        "activation": "relu",
        "residual": True,
    },
    "BatchNorm2d channels last": {
        "pattern": "[n] c [...]",
        "affine": "c",
        "shape": (64, 64, 56, 56),
        "dtype": "bfloat16",
        "activation": "relu",
        "channels_last": True,
    },
    "GroupNorm": {
        "pattern": "n (g=32 [c]) [...]",
        "affine": "g c",
        "shape": (2, 256, 64, 64),
        "dtype": "bfloat16",
        "activation": "silu",
    },
    "GroupNorm channels last": {
        "pattern": "n (g=32 [c]) [...]",
        "affine": "g c",
        "shape": (2, 256, 64, 64),
        "dtype": "bfloat16",
        "activation": "silu",
        "channels_last": True,
    },
    "InstanceNorm3d channels last": {
        "pattern": "n c [...]",
        "affine": "c",
        "shape": (2, 32, 16, 32, 32),
        "dtype": "bfloat16",
        "channels_last": True,
    },
    "LayerNorm2d": {"pattern": "n [c] h w", "affine": "c", "shape": (8, 96, 56, 56), "dtype": "float32"},
    "InstanceNorm masked": {
        "pattern": "n c [...]",
        "affine": "c",
        "shape": (4, 64, 32, 32),
        "dtype": "float32",
        "masked": True,
        "activation": "gelu",
    },
}
# A residual before the normalization: which kernels take the addend and make the sum, which add what is carried.
BEFORE = {
    "RMSNorm": (["forward"], ["gradient"]),
    "LayerNorm long": (["forward"], ["gradient"]),
    "LayerNorm float64": (["forward"], ["gradient"]),
    "LayerNorm2d": (["forward"], ["gradient"]),
    "GroupNorm channels last": ([], ["grad_input"]),
    "BatchNorm2d": ([], ["grad_input"]),
}
CALLS |= {f"{name}, before": {**CALLS[name], "before": True, "residual": False} for name in BEFORE}


def said(program: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a program prints, in a process in which Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(calls: list[dict[str, Any]], capability: int = 90) -> list[dict[str, Any]]:
    return said(COMPILER, json.dumps(calls), str(capability))


@pytest.mark.parametrize(("capability", "stack"), STACK.items())
def test_every_call(capability: int, stack: int) -> None:
    """Machine code that keeps all but a few numbers in registers, loads many at once, and leaves no order open."""
    kernels = compiled([*CALLS.values()], capability)
    assert {found["kernel"] for found in kernels} == set(KERNELS)
    for number, name in enumerate(CALLS):
        own = [found for found in kernels if found["call"] == number]
        assert {"forward", "gradient"} <= {found["kernel"] for found in own}, name
        for found in own:
            assert found["stack"] <= stack, (name, found)
            assert found["narrow"] == 0, (name, found)
            assert found["atomic"] == 0, (name, found)
    for name, (adds, carries) in BEFORE.items():
        number = list(CALLS).index(f"{name}, before")
        own = [found for found in kernels if found["call"] == number]
        assert [f["kernel"] for f in own if {"addend", "sums"} <= {*f["given"]} and f["kernel"] == "forward"] == adds
        assert [f["kernel"] for f in own if "carried" in f["given"]] == carries


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_every_activation(dtype: str) -> None:
    call = {"pattern": "n (g=2 [c]) [...]", "affine": "g c", "shape": (2, 4, 8, 8), "dtype": dtype, "residual": True}
    kernels = compiled([{**call, "activation": name} for name in ACTIVATIONS])
    assert Counter(found["kernel"] for found in kernels) == dict.fromkeys(("forward", "gradient"), len(ACTIVATIONS))


# Rows in words of 16 bytes, of less, and of one element; one that a program holds, that it loops over, one in pieces.
ROWS = [
    ("bfloat16", 4096),
    ("float32", 98),
    ("bfloat16", 100),
    ("float32", 97),
    ("float32", 20_001),
    ("bfloat16", 40_002),
]


@pytest.mark.parametrize(("dtype", "width"), ROWS, ids=str)
def test_a_row_is_added_up_in_one_order(dtype: str, width: int) -> None:
    """Alone and among many, from an aligned address on or not, with a gap behind it: threads have the same elements."""
    row = {"pattern": "... [d]", "affine": "d", "dtype": dtype, "activation": "silu"}
    many = 10_000 if width < 1000 else 100
    calls: list[dict[str, Any]] = [
        *({**row, "shape": (rows, width)} for rows in (64, 1, 2, many)),
        *({**row, "shape": (rows, width), "offset": offset} for rows, offset in ((1, 5 * width), (64, 1))),
        *({**row, "shape": (rows, width), "gap": gap} for rows, gap in ((64, 3), (1, 3))),
    ]
    kernels = compiled(calls)
    first, *others = (
        [(k["kernel"], k["added"]) for k in kernels if k["call"] == number] for number in range(len(calls))
    )
    assert all(sums for kernel, sums in first if kernel in ("forward", "gradient"))
    for call, found in zip(calls[1:], others, strict=True):
        assert found == first, call


def test_the_second_time_triton_is_not_asked() -> None:
    """The same binary gets the same arguments, past what would look for it; another kind of operands another one."""
    launches = said(LAUNCHER)
    first, second = launches[: len(launches) // 2], launches[len(launches) // 2 :]
    steps = {number: [f["asked"] for f in first if f["step"] == number] for number in range(7)}
    # What lies elsewhere is read in the same words: 8 elements of two bytes later as it is, one later as a copy.
    assert steps[1] == steps[2] == [False, False]
    assert all(all(asked) for number, asked in steps.items() if number not in (1, 2))
    assert not any(found["asked"] for found in second)
    for one, other in zip(first, second, strict=True):
        for what in ("kernel", "binary", "grid", "arguments"):
            assert one[what] == other[what]
    assert {found["kernel"] for found in first} == set(KERNELS)
    asked = [found["binary"] for found in first if found["asked"]]
    assert len(set(asked)) == len(asked)

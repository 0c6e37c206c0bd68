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


def said(program: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a program prints, in a process in which Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(calls: list[dict[str, Any]], capability: int = 90) -> list[dict[str, Any]]:
    return said(COMPILER, json.dumps(calls), str(capability))


@pytest.mark.parametrize("name", CALLS)
def test_hopper(name: str) -> None:
    """Machine code for an H100 or H200 that keeps all but a few numbers in registers, and loads many at once."""
    kernels = compiled([CALLS[name]])
    assert {"forward", "gradient"} <= {found["kernel"] for found in kernels}
    for found in kernels:
        assert found["stack"] <= 160, found
        assert found["narrow"] == 0, found
        assert found["atomic"] == 0, found


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_every_activation(dtype: str) -> None:
    call = {"pattern": "n (g=2 [c]) [...]", "affine": "g c", "shape": (2, 4, 8, 8), "dtype": dtype, "residual": True}
    kernels = compiled([{**call, "activation": name} for name in ACTIVATIONS])
    assert Counter(found["kernel"] for found in kernels) == dict.fromkeys(("forward", "gradient"), len(ACTIVATIONS))


@pytest.mark.parametrize("capability", [70, 80, 100])
def test_other_generations(capability: int) -> None:
    found = compiled([CALLS["BatchNorm2d"]], capability)
    assert {kernel["kernel"] for kernel in found} >= {"forward", "gradient", "apply"}


def test_the_second_time_triton_is_not_asked() -> None:
    """The same binary gets the same arguments, past what would look for it; another kind of operands another one."""
    launches = said(LAUNCHER)
    first, second = launches[: len(launches) // 2], launches[len(launches) // 2 :]
    steps = {number: [f["asked"] for f in first if f["step"] == number] for number in range(7)}
    # 8 elements of two bytes later an address is as aligned as before.
    assert steps[2] == [False, False]
    assert all(all(asked) for number, asked in steps.items() if number != 2)
    assert not any(found["asked"] for found in second)
    for one, other in zip(first, second, strict=True):
        for what in ("kernel", "binary", "grid", "arguments"):
            assert one[what] == other[what]
    assert {found["kernel"] for found in first} == set(KERNELS)
    asked = [found["binary"] for found in first if found["asked"]]
    assert len(set(asked)) == len(asked)

"""The kernels compiled for GPUs that need not be there: nothing spilled, wide loads, no order left open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenorm.kernels import triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton.installed(), reason="Triton is not installed"),
]

PROGRAM = Path(__file__).with_name("absent_gpu.py")

CALLS: dict[str, dict[str, Any]] = {
    "RMSNorm": {"pattern": "... [d]", "affine": "d", "shape": (64, 4096), "dtype": "bfloat16"},
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


def compiled(call: dict[str, Any], capability: int) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), json.dumps([call]), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", CALLS)
def test_hopper(name: str) -> None:
    """Machine code for an H100 or H200 that keeps all but a few numbers in registers, and loads many at once."""
    kernels = compiled(CALLS[name], 90)
    assert {"forward", "gradient"} <= {found["kernel"] for found in kernels}
    for found in kernels:
        assert found["stack"] <= 160, found
        assert found["narrow"] == 0, found
        assert found["atomic"] == 0, found


@pytest.mark.parametrize("capability", [80, 100])
def test_other_generations(capability: int) -> None:
    assert {found["kernel"] for found in compiled(CALLS["BatchNorm2d"], capability)} >= {"forward", "gradient", "apply"}

"""What runs on the device, and the one place that starts it. Importing this imports Triton."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from evenorm.kernels.triton.device.backward import grad_input, grad_parameters, gradient
from evenorm.kernels.triton.device.forward import apply, forward, merge

__all__ = ["start"]

_KERNELS = {
    "apply": apply,
    "forward": forward,
    "grad_input": grad_input,
    "grad_parameters": grad_parameters,
    "gradient": gradient,
    "merge": merge,
}
_REALS = {torch.float32: tl.float32, torch.float64: tl.float64}


def start(kernel: str, programs: int, first: Tensor, *operands: Any, **constants: Any) -> None:
    """Start a kernel's programs on the stream of the device on which its operands lie."""
    if "REAL" in constants:
        constants["REAL"] = _REALS[constants["REAL"]]
    device = first.device
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        _KERNELS[kernel][(programs,)](first, *operands, **constants)

"""What runs on the device, and the one place that starts it. Importing this imports Triton."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from evenorm.kernels.triton.device.backward import grad_input, grad_parameters, gradient
from evenorm.kernels.triton.device.forward import apply, forward, merge

__all__ = ["KERNELS", "start"]

KERNELS = {
    "apply": apply,
    "forward": forward,
    "grad_input": grad_input,
    "grad_parameters": grad_parameters,
    "gradient": gradient,
    "merge": merge,
}


def start(kernel: str, programs: int, operands: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Start a kernel's programs on the stream of the device on which its first operand lies."""
    device = operands[0].device
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        KERNELS[kernel][(programs,)](*operands, **constants)

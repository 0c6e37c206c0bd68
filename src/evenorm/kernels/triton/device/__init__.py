"""What runs on the device, and the one place that starts it. Importing this imports Triton."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from evenorm.kernels.triton.device.backward import grad_input, grad_parameters, gradient
from evenorm.kernels.triton.device.forward import apply, forward, merge
from evenorm.kernels.triton.prepared import ALIGNED, Launch

__all__ = ["KERNELS", "start"]

KERNELS = {
    "apply": apply,
    "forward": forward,
    "grad_input": grad_input,
    "grad_parameters": grad_parameters,
    "gradient": gradient,
    "merge": merge,
}


def start(launch: Launch, operands: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Start a launch's programs on the stream of the device on which its first operand lies.

    The second time, operands of the same kind go straight to the compiled kernel: to find it among all that it has
    compiled, Triton would ask each number anew.
    """
    device = operands[0].device
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    kind = (*constants.values(), *map(_kind, operands))
    compiled = launch.compiled.get(kind)
    with torch.cuda.device(device) if elsewhere else nullcontext():
        if compiled is not None:
            compiled(*operands, *launch.numbers)
            return
        kernel, constants = KERNELS[launch.kernel], {**launch.constants, **constants}
        made = kernel[(launch.programs,)](*operands, *launch.numbers, **constants)
    # The interpreter has compiled nothing.
    if made is not None:
        run = made[(launch.programs, 1, 1)]
        last = [constants[name] for name in kernel.arg_names if name in constants]
        launch.compiled[kind] = lambda *given: run(*given, *last)


def _kind(operand: Any) -> Any:
    """All that Triton compiles a kernel anew for: a tensor's dtype and alignment, which are there, every number."""
    if isinstance(operand, Tensor):
        return operand.dtype, operand.data_ptr() % ALIGNED == 0
    if isinstance(operand, tuple):
        return tuple(map(_kind, operand))
    return operand

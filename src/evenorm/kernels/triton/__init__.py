"""The fused kernels on a GPU, in Triton.

The same plan as the C++ kernels have. Triton is imported by the first call that they take, and not before: where there
is no GPU never, unless ``TRITON_INTERPRET=1`` asks for its interpreter, in which tensors of the CPU are taken.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.kernels.finish import Finish
from evenorm.kernels.signature import Signature
from evenorm.kernels.triton.call import Call
from evenorm.kernels.triton.prepared import planned
from evenorm.pattern import Pattern

__all__ = [
    "FIT",
    "apply",
    "backward",
    "declines",
    "forward",
    "forward_of_sum",
    "grad_input",
    "grad_sums",
    "installed",
    "interpreted",
    "moments",
    "name",
    "ready",
    "state",
    "unfit",
]

name = "triton"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NOTHING = Finish(Affine(), Epilogue())
# Volta's compute capability, the least that Triton compiles for.
_OLDEST = (7, 0)
# What `unfit` finds no fault with.
FIT = "one of NVIDIA's, of compute capability {}.{} or later".format(*_OLDEST)


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def installed() -> bool:
    """Whether there is a Triton to import."""
    return find_spec("triton") is not None


def unfit() -> str | None:
    """Why the GPUs of this machine cannot run these kernels, or ``None``."""
    if torch.version.hip is not None:
        return "these kernels are for NVIDIA's GPUs, and this torch is built for ROCm"
    oldest = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())), default=_OLDEST)
    if oldest < _OLDEST:
        return "a GPU here has compute capability {}.{}, and Triton takes {}.{} and later".format(*oldest, *_OLDEST)
    return None


def ready() -> bool:
    """Whether these kernels can run on this machine."""
    return installed() and (interpreted() or (torch.cuda.is_available() and unfit() is None))


def state() -> str:
    """The version of Triton, and what it runs on here."""
    if not installed():
        return "not installed: tensors on a GPU take torch's own operations"
    if interpreted():
        place = "interpreted"
    elif torch.cuda.is_available():
        place = unfit() or torch.cuda.get_device_name()
    else:
        place = "no GPU"
    return f"{_version()}, {place}"


def _version() -> str:
    """Triton's version, without importing it."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        # A nightly torch's is of another name, and sources on the path are of none.
        names = metadata.packages_distributions().get("triton", ())
        return metadata.version(names[0]) if names else "unknown version"


def declines(signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
    """Where there is no GPU that Triton knows, no Triton, no plan, or no plain memory to read."""
    if signature.device != ("cpu" if interpreted() else "cuda"):
        return f"the tensor is on {signature.device}" + (", which its interpreter does not take" * interpreted())
    if not installed():
        return "Triton is not installed"
    if not interpreted() and (reason := unfit()) is not None:
        return reason
    if signature.strange is not None:
        return signature.strange
    if signature.dtype not in _DTYPES:
        return f"{signature.dtype} is not among its dtypes"
    if 0 in signature.shape:
        return "the tensor is empty"
    found = planned(pattern, affine, signature.shape, signature.strides, None)
    return found if isinstance(found, str) else None


def moments(x: Tensor, pattern: Pattern, centered: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each group."""
    call = Call(x, pattern, _NOTHING, mask, centered=centered)
    mean, m2 = call.moments()
    return call.to_pattern(mean), call.to_pattern(m2)


def apply(
    x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> Tensor:
    """y = activation((x − mean) · rstd · (offset + weight) + bias + residual)."""
    call = Call(x, pattern, finish, mask)
    y = call.new_output()
    call.apply(y, call.to_memory(mean), call.to_memory(rstd))
    return call.natural(y)


def forward(
    x: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments, then apply, in one sweep where a program holds a whole statistic: y, mean, M2."""
    call = Call(x, pattern, finish, mask, centered=centered, eps=eps)
    y = call.new_output()
    mean, m2 = call.moments(y)
    return call.natural(y), call.to_pattern(mean), call.to_pattern(m2)


def forward_of_sum(
    x: Tensor, addend: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, x + addend, mean, M2; in one sweep where a tile holds whole statistics."""
    call = Call.of_sum(x, pattern, finish, centered, eps)
    if call is None:
        total = x + addend
        y, mean, m2 = forward(total, pattern, centered, eps, finish)
        return y, total, mean, m2
    y, total = call.new_output(), call.new_output()
    mean, m2 = call.moments(y, call.beside(addend), total)
    return call.natural(y), call.natural(total), call.to_pattern(mean), call.to_pattern(m2)


def grad_sums(
    dy: Tensor, x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ γ·dz and Σ γ·dz·x̂ of each group; Σ dz·x̂ and Σ dz of each parameter."""
    call = Call(x, pattern, finish, mask, dy=dy)
    sums, of_parameters = call.sums(call.to_memory(mean), call.to_memory(rstd))
    s1, s2 = sums.reshape(2, *call.statistics_shape)
    d_weight, d_bias = call.pair(of_parameters)
    return call.to_pattern(s1), call.to_pattern(s2.clone()), d_weight, d_bias


def grad_input(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    finish: Finish,
    c1: Tensor | None,
    c2: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx = rstd · (γ·dz − c1 − x̂·c2), and dz for the residual."""
    call = Call(x, pattern, finish, mask, dy=dy)
    dx, dz = call.new_output(), call.new_residual_gradient()
    sums = (None if c is None else call.to_memory(c) for c in (c1, c2))
    call.grad_input(dx, dz, call.to_memory(mean), call.to_memory(rstd), *sums)
    return call.natural(dx), call.residual_gradient(dy, dz)


def backward(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    centered: bool,
    eps: float,
    mean: Tensor,
    m2: Tensor,
    finish: Finish,
    mask: Tensor | None = None,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The sums and the input's gradient, in one sweep where a program holds a whole statistic.

    dx + carried, Σ dz·x̂, Σ dz, dz.
    """
    call = Call(x, pattern, finish, mask, centered=centered, eps=eps, dy=dy)
    dx, dz = call.new_output(), call.new_residual_gradient()
    mean, m2 = call.to_memory(mean), call.to_memory(m2)
    if call.prepared.pieces_back == 1:
        of_parameters = call.gradient(mean, m2, "m2", dx, dz, call.beside(carried))
    else:
        count = call.prepared.view.values if call.counts is None else call.counts
        rstd = (m2 / count + eps).rsqrt()
        sums, of_parameters = call.sums(mean, rstd)
        c1, c2 = sums.reshape(2, *mean.shape) / count
        call.grad_input(dx, dz, mean, rstd, c1 if centered else None, c2, call.beside(carried))
    d_weight, d_bias = call.pair(of_parameters)
    return call.natural(dx), d_weight, d_bias, call.residual_gradient(dy, dz)

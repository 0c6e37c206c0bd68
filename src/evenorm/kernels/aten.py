"""Torch's own fused functions: as a kernel where they keep the contract, and in graphs that other runtimes will read.

As a kernel there is little left. In float32 and half precision their statistics are float32 numbers, and a layer norm
errs by 3.6e-4 at a mean of 1e4 deviations. Batch norm, and the gradients of a layer norm's parameters, change with the
number of threads; group norm with the channels last sums squares, and errs by 896 there. So it is the layer norm of
float64 rows, forward; gradients are ``eager``'s.

An exported graph should hold one ``batch_norm`` or ``layer_norm`` that every converter knows, not the dozen
small operations that it is made of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.kernels import eager
from evenorm.kernels.eager import apply, grad_input, grad_sums, moments
from evenorm.kernels.finish import Finish
from evenorm.kernels.signature import Signature
from evenorm.pattern import Pattern

__all__ = ["apply", "declines", "forward", "grad_input", "grad_sums", "moments", "name", "normalize"]

name = "aten"


def declines(signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
    """All but the layer norm of dense float64 rows on a CPU."""
    if signature.device != "cpu" or signature.strange is not None:
        return "it is held to the contract in plain memory of the CPU alone"
    if signature.mask is not None:
        return "torch's functions take no mask"
    if signature.dtype != torch.float64:
        return f"it keeps mean and variance in {str(signature.dtype).removeprefix('torch.')}, not in float64"
    if _family(pattern, affine) != "layer" or affine.cast == "before":
        return "of torch's functions layer norm alone gives a row the same bits on any number of threads"
    if (
        0 in signature.shape
        or not torch.empty_strided(signature.shape, signature.strides, device="meta").is_contiguous()
    ):
        return "the tensor is empty or has gaps"
    return None


def forward(
    x: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean, and M2 as it follows from rstd."""
    if not centered:
        return eager.forward(x, pattern, centered, eps, finish, mask)
    binding = pattern.bind(x.shape)
    shape = x.shape[len(binding.kept) :]
    weight, bias = (None if p is None else p.to(x.dtype).reshape(shape) for p in (finish.weight, finish.bias))
    weight = None if weight is None else weight + finish.affine.offset
    y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    y = y if finish.residual is None else y + finish.residual.to(x.dtype)
    m2 = ((rstd**-2 - eps) * binding.count).clamp_min(0)
    kept = binding.statistics_shape
    return finish.epilogue.apply(y), mean.reshape(kept), m2.reshape(kept)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    parsed: tuple[Pattern, Affine, Epilogue],
    centered: bool,
    eps: float,
) -> Tensor | None:
    """y by one of torch's functions, or ``None`` where torch has none for the pattern, the affine or the dtypes.

    Args:
        parsed: the pattern and the affine; what the epilogue asks for is left to the caller.
        mean, variance: given statistics; those of this batch where absent.
    """
    pattern, affine, _ = parsed
    if affine.cast == "before" or any(p is not None and p.dtype != x.dtype for p in (weight, bias, mean)):
        return None
    family = _family(pattern, affine)
    if weight is not None and affine.offset:
        weight = weight + affine.offset
    if mean is not None:
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if family == "batch" else None
    if family == "layer":
        shape = list(x.shape[x.dim() - sum(f.reduced for f in pattern.factors) :])
        return F.layer_norm(x, shape, weight, bias, eps) if centered else F.rms_norm(x, shape, weight, eps)
    if family == "group" and centered:
        groups = pattern.factors[1].size or pattern.bind(x.shape).statistics_shape[1]
        scale, shift = (None if p is None else p.reshape(-1) for p in (weight, bias))
        return F.group_norm(x, groups, scale, shift, eps)
    if family == "instance" and centered:
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    return None


def _family(pattern: Pattern, affine: Affine) -> str | None:
    """Which of torch's functions has this pattern."""
    factors = [axis.factors for axis in pattern.axes]
    reduced = [tuple(f.reduced for f in axis) for axis in factors]
    names = tuple(f.name for f in pattern.factors)
    if affine.axes in ((), names[1:2]) and len(reduced) > 1 and all(r == (True,) for r in reduced[2:]):
        if reduced[:2] == [(True,), (False,)]:
            return "batch"
        if reduced[:2] == [(False,), (False,)] and len(reduced) > 2:
            return "instance"
    if affine.axes in ((), names[1:3]) and reduced[:2] == [(False,), (False, True)]:
        return "group" if all(r == (True,) for r in reduced[2:]) else None
    trailing = [axis[0] for axis in factors if len(axis) == 1 and axis[0].reduced]
    own = tuple(f.name for f in trailing)
    ordered = reduced == sorted(reduced) and all(len(axis) == 1 for axis in factors) and "..." not in own
    return "layer" if ordered and affine.axes in ((), own) else None

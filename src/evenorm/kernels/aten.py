"""Torch's own fused functions, for graphs that other runtimes will read.

An exported graph should hold one ``batch_norm`` or ``layer_norm`` that every converter knows, not the dozen
small operations that it is made of.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.pattern import Pattern

__all__ = ["normalize"]


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

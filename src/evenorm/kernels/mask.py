"""The mask: which elements of a tensor are there. What it hides may hold anything, NaN too."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from evenorm.pattern import Binding

__all__ = ["counts", "split"]


def split(mask: Tensor, binding: Binding) -> Tensor:
    """A mask, which has the input's axes, each whole or of size 1, in the shape of the pattern's factors."""
    whole = [mask.shape[axis] != 1 for axis in binding.axes]
    return mask.reshape([size if w else 1 for size, w in zip(binding.shape, whole, strict=True)])


def counts(mask: Tensor, binding: Binding, dtype: torch.dtype = torch.float64) -> Tensor:
    """Valid elements of each group, in the shape of the statistics."""
    valid = split(mask, binding)
    repeated = prod(binding.shape[i] for i in binding.reduced if valid.shape[i] == 1)
    return (valid.sum(binding.reduced, dtype=dtype) * repeated).expand(binding.statistics_shape)

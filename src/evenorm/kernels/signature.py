"""The signature: what a kernel may know of a tensor before it takes a call, and of no value in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Signature"]


class Signature(NamedTuple):
    """Hashable, so that a choice is made once for each kind of call."""

    kind: type
    device: str
    dtype: torch.dtype
    layout: torch.layout
    negated: bool
    shape: torch.Size
    strides: tuple[int, ...]
    # The mask has the input's axes, each whole or of size 1.
    mask: torch.Size | None = None

    @staticmethod
    def of(x: Tensor, mask: Tensor | None = None) -> Signature:
        """The signature of a tensor, and of the mask that says which of its elements are there."""
        strides = x.stride() if x.layout is torch.strided else ()
        masked = None if mask is None else mask.shape
        return Signature(type(x), x.device.type, x.dtype, x.layout, x.is_neg(), x.shape, strides, masked)

    @property
    def strange(self) -> str | None:
        """Why memory does not hold the values as they are, or ``None``."""
        if self.negated:
            return "the tensor is a negative view, which x.resolve_neg() makes plain"
        if self.kind not in (Tensor, nn.Parameter) or self.layout is not torch.strided:
            return f"{self.kind.__name__} is not torch's own dense tensor"
        return None

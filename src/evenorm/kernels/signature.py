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
    def is_plain(self) -> bool:
        """Whether memory holds the values as they are, in torch's own tensor."""
        return self.kind in (Tensor, nn.Parameter) and self.layout is torch.strided and not self.negated

"""How a tensor may lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "lay"]


def _contiguous(x: Tensor, pattern: str) -> Tensor:
    return x.contiguous()


def _channels_last(x: Tensor, pattern: str) -> Tensor:
    """Axis 1 innermost, as torch's memory format has it for images and volumes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x.contiguous()


def _transposed(x: Tensor, pattern: str) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x.contiguous()


def _sliced(x: Tensor, pattern: str) -> Tensor:
    """A third of a wider tensor, as the keys of a fused projection are."""
    wide = torch.full((*x.shape[:-1], 3 * x.shape[-1]), torch.nan, dtype=x.dtype)
    view = wide.narrow(-1, x.shape[-1], x.shape[-1])
    return view.copy_(x)


def _stepped(x: Tensor, pattern: str) -> Tensor:
    """Every other element of the innermost axis."""
    wide = torch.full((*x.shape, 2), torch.nan, dtype=x.dtype)
    return wide[..., 0].copy_(x)


def _expanded(x: Tensor, pattern: str) -> Tensor:
    """One axis repeated without a copy; a kept one, so that the values still differ."""
    axis = 1 if pattern.startswith("[n") and x.dim() > 1 else 0
    return x.narrow(axis, 0, 1).expand(x.shape)


LAYOUTS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "transposed": _transposed,
    "sliced": _sliced,
    "stepped": _stepped,
    "expanded": _expanded,
}


def lay(x: Tensor, layout: str, pattern: str) -> Tensor:
    """The same shape, laid in memory as named; an expanded tensor holds a part of the values."""
    laid = LAYOUTS[layout](x, pattern)
    assert laid.shape == x.shape
    assert laid.isfinite().all()
    return laid

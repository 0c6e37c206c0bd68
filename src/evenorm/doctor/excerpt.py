"""What is kept of a normalizer's input."""

from __future__ import annotations

from torch import Tensor

__all__ = ["first_samples", "thinned"]

# An excerpt holds so many values at most.
VALUES = 1 << 18
# Of samples, of channels, and of positions.
EACH = 64


def first_samples(x: Tensor) -> Tensor:
    """Whole samples, which a normalizer takes as it took the input: those that fit, two at least.

    >>> import torch
    >>> first_samples(torch.zeros(8, 256, 64, 64)).shape
    torch.Size([2, 256, 64, 64])
    """
    return x[: max(2, VALUES // max(x[:1].numel(), 1))].clone() if x.dim() else x.clone()


def thinned(x: Tensor) -> Tensor:
    """Many samples, evenly spread, with a part of their channels and positions.

    >>> import torch
    >>> thinned(torch.zeros(100, 256, 32, 32)).shape
    torch.Size([50, 64, 8, 8])
    """
    positions = max(round(EACH ** (1 / max(x.dim() - 2, 1))), 1)
    most = (EACH, EACH, *(positions for _ in range(x.dim() - 2)))
    steps = (max(-(-size // limit), 1) for size, limit in zip(x.shape, most, strict=False))
    return x[tuple(slice(None, None, step) for step in steps)].clone()

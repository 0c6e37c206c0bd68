"""The mask: which elements of a tensor are there. What it hides may hold anything, NaN too."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from evenorm.pattern import Binding

__all__ = ["counts", "from_lengths", "lay", "split"]


def split(mask: Tensor, binding: Binding) -> Tensor:
    """A mask, which has the input's axes, each whole or of size 1, in the shape of the pattern's factors."""
    whole = [mask.shape[axis] != 1 for axis in binding.axes]
    return mask.reshape([size if w else 1 for size, w in zip(binding.shape, whole, strict=True)])


def counts(mask: Tensor, binding: Binding, dtype: torch.dtype = torch.float64) -> Tensor:
    """Valid elements of each group, in the shape of the statistics."""
    valid = split(mask, binding)
    repeated = prod([binding.shape[i] for i in binding.reduced if valid.shape[i] == 1])
    return (valid.sum(binding.reduced, dtype=dtype) * repeated).expand(binding.statistics_shape)


def lay(mask: Tensor, x: Tensor, binding: Binding, features: Sequence[str]) -> Tensor:
    """A mask with the input's axes, each whole or of size 1, from one that has them or lacks those of the features.

    Raises:
        ValueError: another shape, dtype or device.
    """
    short, wide = _without(x.shape, binding, features)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"expected a mask of torch.bool, True = valid, got {kind}; write mask != 0")
    if mask.device != x.device:
        raise ValueError(f"the input is on {x.device}, the mask on {mask.device}; move one with .to(…)")
    if tuple(mask.shape) == short:
        return mask.reshape(wide)
    if mask.dim() == x.dim() and all(m in (1, size) for m, size in zip(mask.shape, x.shape, strict=True)):
        return mask
    raise ValueError(
        f"expected a mask of shape {short}, or one that broadcasts against {tuple(x.shape)} with as many axes; "
        f"got {tuple(mask.shape)}"
    )


def from_lengths(lengths: Tensor, x: Tensor, binding: Binding, features: Sequence[str]) -> Tensor:
    """The mask of sequences that are valid up to a length each.

    Raises:
        ValueError: not one integer for each sample, no single axis of positions, or a length beyond the padding.
    """
    short, wide = _without(x.shape, binding, features)
    if len(short) != 2:
        raise ValueError(f"lengths= need one axis of positions, got {len(short) - 1} in {tuple(x.shape)}; give mask=")
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.shape != short[:1]:
        raise ValueError(
            f"expected {short[0]} integer lengths, one for each sample, got {lengths.dtype} of shape "
            f"{tuple(lengths.shape)}"
        )
    _check_range(lengths, short[1])
    positions = torch.arange(short[1], device=x.device)
    return (positions < lengths.to(x.device)[:, None]).reshape(wide)


def _check_range(lengths: Tensor, most: int) -> None:
    """Refuse lengths that are negative or beyond the padding."""
    expected = f"expected lengths from 0 to the {most} positions there are"
    if torch.compiler.is_compiling() or lengths.device.type != "cpu":
        # Asking for the values would make the host wait.
        torch._assert_async(((lengths >= 0) & (lengths <= most)).all(), expected)
        return
    # What a transform wraps holds those of every member.
    while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        lengths = torch._C._functorch.get_unwrapped(lengths)
    wrong = (lengths < 0) | (lengths > most)
    if bool(wrong.any()):
        raise ValueError(f"{expected}, got {int(lengths[wrong][0])}")


def _without(
    shape: Sequence[int], binding: Binding, features: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape without the axes of the features: left out, and as 1."""
    own = {binding.axes[binding.names.index(name)] for name in features}
    wide = tuple(1 if axis in own else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in own), wide

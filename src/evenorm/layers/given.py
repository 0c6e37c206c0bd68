"""Weight and bias that a call brings."""

from __future__ import annotations

from math import prod

from torch import Tensor

from evenorm.pattern import Binding

__all__ = ["axes_of"]


def axes_of(given: Tensor, binding: Binding, shape: tuple[int, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """The axes on which a scale or a shift lies: the layer's own, those of each sample too, or any that broadcast.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"expected a tensor for scale and shift, got {type(given).__name__}")
    first = tuple(n for n, axis in zip(binding.names, binding.axes, strict=True) if axis == 0)
    sizes, batch = binding.sizes(own), shape[0]
    if given.shape in (sizes, (prod(sizes),)):
        return own
    if given.shape in ((batch, *sizes), (batch, prod(sizes))):
        return first + own
    if given.dim() == len(shape) and all(g in (1, i) for g, i in zip(given.shape, shape, strict=True)):
        return tuple(n for n, a in zip(binding.names, binding.axes, strict=True) if given.shape[a] != 1)
    raise ValueError(
        f"scale and shift must have shape {sizes}, {(batch, *sizes)} (per sample), or one that "
        f"broadcasts against {tuple(shape)}; got {tuple(given.shape)}"
    )

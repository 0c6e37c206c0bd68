"""Weight and bias that a call brings."""

from __future__ import annotations

from math import prod

from torch import Tensor

from evenorm.affine import Affine
from evenorm.pattern import Binding

__all__ = ["affine_of"]


def affine_of(
    own: Affine, binding: Binding, shape: tuple[int, ...], scale: Tensor | None, shift: Tensor | None
) -> tuple[Affine, Tensor | None, Tensor | None]:
    """The affine that a call brings in place of the layer's own, its weight and its bias.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, or two that differ.
    """
    # One value for all is one for each of an axis.
    scale, shift = (
        given.expand(*given.shape[:-1], shape[-1])
        if isinstance(given, Tensor) and given.dim() == len(shape) and given.numel() == 1
        else given
        for given in (scale, shift)
    )
    axes = {_axes_of(given, binding, shape, own.axes) for given in (scale, shift) if given is not None}
    if len(axes) > 1:
        raise ValueError("scale and shift lie on different axes; give both in one shape")
    return Affine(axes.pop(), own.offset, own.cast), scale, shift


def _axes_of(given: Tensor, binding: Binding, shape: tuple[int, ...], own: tuple[str, ...]) -> tuple[str, ...]:
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

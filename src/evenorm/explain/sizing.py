"""A layer by its name, with the sizes that an input's shape asks for."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from evenorm import layers
from evenorm.layers import Layer

__all__ = ["lacks_samples", "layer_named"]


def layer_named(name: str, shape: Sequence[int], *, groups: int = 32, virtual_batch_size: int = 16) -> Layer:
    """A new layer by its name, sized for inputs of a shape.

    Args:
        name: ``BatchNorm2d``, ``LayerNorm``, …
        shape: the input's; the channels are axis 1, and the last axis for LayerNorm and RMSNorm.
        groups: for GroupNorm.
        virtual_batch_size: for the ghost batch norms.

    Raises:
        ValueError: there is no such layer, or it does not take such a shape.

    >>> layer_named("GroupNorm", (8, 64, 56, 56))
    GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)
    """
    # Norm is its pattern, and Layer is nothing but its heirs.
    names = [known for known in layers.__all__ if known not in ("Layer", "Norm")]
    if name not in names:
        # All of them, the nearest first.
        near = get_close_matches(name, names, n=len(names), cutoff=0.0)
        raise ValueError(
            f"there is no layer {name!r}; choose among {', '.join(near)}, or write a pattern, '[n] c [...]'"
        )
    build: Any = getattr(layers, name)
    if name in ("LayerNorm", "RMSNorm"):
        least, axis = 1, -1
    else:
        least, axis = 2, 0 if lacks_samples(build, len(shape)) else 1
    if len(shape) < least:
        raise ValueError(
            f"{name}: expected {' or '.join(build.forms) or 'channels on axis 1'}, got shape {tuple(shape)}"
        )
    if issubclass(build, layers.GroupNorm):
        return build(groups, shape[axis])
    return build(shape[axis], virtual_batch_size) if name.startswith("Ghost") else build(shape[axis])


def lacks_samples(layer: type, rank: int) -> bool:
    """Whether this is a lone sample, which instance normalization takes without an axis for it."""
    instance = (layers.InstanceNorm1d, layers.InstanceNorm2d, layers.InstanceNorm3d)
    return issubclass(layer, instance) and rank == layer.forms[0].count(",")

"""The eight rows of a comparison: no normalization and the seven families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import evenorm

Layer = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Normalizer:
    """One row: how it normalizes hidden layers, and where it cannot.

    Attributes:
        name: its name on the command line and in tables.
        meaning: what it divides by what, in a line.
        maps: the layer for feature maps (N, C, H, W), made from C; none where weights are normalized.
        vectors: the layer for vectors (N, C), made from C.
        weights: the parametrization of a convolution's or a linear layer's weight.
        declines: the reason why it has no meaning for (model, batch size), or none.
    """

    name: str
    meaning: str
    maps: Layer | None = None
    vectors: Layer | None = None
    weights: Callable[[nn.Module], nn.Module] | None = None
    declines: Callable[[str, int], str | None] = lambda model, batch_size: None

    def layer(self, maps: bool, channels: int) -> nn.Module:
        """Return the layer to stand in a block; the identity where weights are normalized."""
        make = self.maps if maps else self.vectors
        return make(channels) if make else nn.Identity()


def _needs_a_batch(model: str, batch_size: int) -> str | None:
    if batch_size > 1:
        return None
    return "a batch of one image has no statistics over images"


def _needs_pixels(model: str, batch_size: int) -> str | None:
    if model != "mlp":
        return None
    return "an MLP has one value per image and channel: minus its own mean it is always zero"


NORMALIZERS = {
    row.name: row
    for row in (
        Normalizer("none", "nothing is normalized"),
        Normalizer(
            "batch",
            "each channel over all images of the batch and all pixels; running averages in evaluation",
            maps=evenorm.BatchNorm2d,
            vectors=evenorm.BatchNorm1d,
            declines=_needs_a_batch,
        ),
        Normalizer(
            "layer",
            "each pixel of each image over its channels (in an MLP each image over its features)",
            maps=evenorm.LayerNorm2d,
            vectors=evenorm.LayerNorm,
        ),
        Normalizer(
            "group",
            "each image over four groups of channels and all pixels",
            maps=lambda channels: evenorm.GroupNorm(4, channels),
            vectors=lambda channels: evenorm.GroupNorm(4, channels),
        ),
        Normalizer(
            "instance",
            "each channel of each image over its pixels",
            maps=lambda channels: evenorm.InstanceNorm2d(channels, affine=True),
            declines=_needs_pixels,
        ),
        Normalizer(
            "rms",
            "as layer, but divided by the root mean square, without subtracting the mean",
            maps=evenorm.RMSNorm2d,
            vectors=evenorm.RMSNorm,
        ),
        Normalizer(
            "weight",
            "each filter's weights to a learned length; activations are left alone",
            weights=evenorm.weight_norm,
        ),
        Normalizer(
            "spectral",
            "each weight matrix to a largest singular value of 1; activations are left alone",
            weights=evenorm.spectral_norm,
        ),
    )
}

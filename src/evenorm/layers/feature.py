"""Layer and RMS normalization: statistics per position, over its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evenorm.affine import Affine, Cast
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern, naming

__all__ = ["LayerNorm", "LayerNorm2d", "RMSNorm", "RMSNorm2d"]


@cached
def _last_axes(shape: tuple[int, ...]) -> tuple[Pattern, tuple[str, ...]]:
    """Pattern and affine axes of a normalization over the last axes."""
    sizes = {"d" if len(shape) == 1 else f"d{k}": size for k, size in enumerate(shape)}
    return Pattern.parse(f"... [{' '.join(sizes)}]", **sizes), tuple(sizes)


@cached
def _channels(channels: int) -> Pattern:
    return Pattern.parse("n [c] h w", c=channels)


class LayerNorm(Layer, nn.LayerNorm):
    r"""Layer normalization over the last axes.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot \gamma + \beta

    Pattern ``... [d]``; a row's result does not depend on the rows beside it.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as ``torch.nn.LayerNorm``.

    Shape:
        (…, *normalized_shape) to the same; γ and β have shape ``normalized_shape``.

    Source:
        Ba, Kiros & Hinton, "Layer Normalization" (2016), eq. 4.

    >>> LayerNorm(8)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | tuple[int, ...] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | Epilogue | None = None,
    ) -> None:
        with naming(type(self).__name__):
            self.epilogue = Epilogue.of(activation)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.validate()

    @property
    def pattern(self) -> Pattern:
        """``... [d]`` with the sizes of the last axes."""
        return _last_axes(tuple(self.normalized_shape))[0]

    @property
    def scaling(self) -> Affine:
        """On all that is reduced."""
        return Affine(_last_axes(tuple(self.normalized_shape))[1])


class RMSNorm(Layer, nn.RMSNorm):
    r"""Root mean square normalization over the last axes: no mean is subtracted.

    .. math:: y = \frac{x}{\sqrt{\frac{1}{d}\sum x^2 + \epsilon}} \odot (\text{offset} + \gamma)

    Pattern ``... [d]``, not centered.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as ``torch.nn.RMSNorm``; ``eps=None`` is the
            machine epsilon (float32's for half precision).
        weight_offset: 1 for Gemma's 1 + weight, whose weight starts at 0.
        cast: ``"before"`` rounds to the input's dtype before scaling (Llama), ``"after"`` once at the end.

    Shape:
        (…, *normalized_shape) to the same; γ has shape ``normalized_shape``.

    Source:
        Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), eq. 4.

    >>> RMSNorm(2, eps=0.0)(torch.tensor([1.0, 7.0])).detach()
    tensor([0.2000, 1.4000])
    """

    bias = None
    centered = False

    def __init__(
        self,
        normalized_shape: int | list[int] | tuple[int, ...] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_offset: float = 0.0,
        cast: Cast = "after",
        activation: str | Epilogue | None = None,
    ) -> None:
        with naming(type(self).__name__):
            self.epilogue = Epilogue.of(activation)
            self.weight_offset, self.cast = weight_offset, Affine(cast=cast).cast
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.validate()

    @property
    def pattern(self) -> Pattern:
        """``... [d]`` with the sizes of the last axes."""
        return _last_axes(tuple(self.normalized_shape))[0]

    @property
    def scaling(self) -> Affine:
        """On all that is reduced."""
        return Affine(_last_axes(tuple(self.normalized_shape))[1], self.weight_offset, self.cast)

    def reset_parameters(self) -> None:
        """The weight starts where offset + weight is 1."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)


class LayerNorm2d(Layer, nn.LayerNorm):
    r"""Layer normalization over the channels of images that keep them first (ConvNeXt).

    .. math:: y = \frac{x - \mu_{nhw}}{\sqrt{\sigma_{nhw}^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``n [c] h w``; no permutation to channels last and back.

    Args:
        num_channels: C.
        eps, elementwise_affine, bias, device, dtype: as ``torch.nn.LayerNorm``.

    Shape:
        (N, C, H, W) to the same, any memory format; γ and β are (C,).

    Source:
        Liu et al., "A ConvNet for the 2020s" (2022), appendix.

    >>> LayerNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    scaling = Affine("c")
    forms = ("(N, C, H, W)",)

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | Epilogue | None = None,
    ) -> None:
        with naming(type(self).__name__):
            self.epilogue = Epilogue.of(activation)
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype)
        self.validate()

    @property
    def pattern(self) -> Pattern:
        """``n [c] h w`` with the number of channels."""
        return _channels(self.normalized_shape[0])


class RMSNorm2d(RMSNorm):
    """Root mean square normalization over the channels of (N, C, H, W); see :class:`RMSNorm`, :class:`LayerNorm2d`.

    Shape:
        (N, C, H, W) to the same, any memory format; γ is (C,).

    >>> RMSNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    forms = ("(N, C, H, W)",)

    @property
    def pattern(self) -> Pattern:
        """``n [c] h w`` with the number of channels."""
        return _channels(self.normalized_shape[0])

    @property
    def scaling(self) -> Affine:
        """On the channels."""
        return Affine("c", self.weight_offset, self.cast)

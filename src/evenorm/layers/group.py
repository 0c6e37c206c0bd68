"""Group normalization: statistics per sample and group of channels."""

from __future__ import annotations

from typing import Any

from torch import nn

from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern, naming

__all__ = ["GroupNorm"]


class GroupNorm(Layer, nn.GroupNorm):
    r"""Group normalization of (N, C, …), per sample over groups of channels and the positions.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``n (g [c]) [...]``.

    Args:
        num_groups, num_channels, eps, affine, device, dtype, bias: as ``torch.nn.GroupNorm``.
        activation: what follows, in the same sweep.

    Shape:
        (N, C, …) to the same, any memory format; γ and β are (C,).

    Source:
        Wu & He, "Group Normalization" (2018), eq. 7.

    >>> GroupNorm(2, 6)(torch.randn(4, 6, 5)).shape
    torch.Size([4, 6, 5])
    """

    scaling = Affine("g c")

    @property
    def least_values(self) -> int:
        """In training two, in evaluation one: a trained model must run wherever torch's runs."""
        return 2 if self.training else 1

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | Epilogue | None = None,
    ) -> None:
        for given in (num_groups, num_channels):
            if not isinstance(given, int):
                raise TypeError(f"GroupNorm: expected whole numbers of groups and channels, got {given!r}")
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups must divide num_channels, got {num_groups} groups and {num_channels} channels"
            )
        with naming("GroupNorm"):
            self.epilogue = Epilogue.of(activation)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self.validate()

    @property
    def pattern(self) -> Pattern:
        """``n (g [c]) [...]`` with the sizes of groups."""
        return _grouped(self.num_groups, self.num_channels // self.num_groups)


@cached
def _grouped(groups: int, channels: int) -> Pattern:
    return Pattern.parse("n (g [c]) [...]", g=groups, c=channels)

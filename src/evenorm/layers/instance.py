"""Instance normalization: statistics per sample and channel, over the positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.functional import refuse_residual
from evenorm.layers.remembering import BatchLayer
from evenorm.pattern import Pattern
from evenorm.statistics import Accumulated, Batch, Statistics

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class _InstanceNorm(BatchLayer):
    pattern, scaling, history_axes = Pattern.parse("n c [...]"), Affine("c"), ("c",)
    meaningless: ClassVar[Mapping[type[Statistics], str]] = {
        Accumulated: "a sample has statistics of its own, which no other micro-batch adds to"
    }

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        decay: float | None = None,
        activation: str | Epilogue | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats, device, dtype),
            bias=bias,
            decay=decay,
            activation=activation,
            statistics=statistics,
        )

    @property
    def statistics(self) -> Statistics:  # type: ignore[override]
        """As batch normalization's; but torch's layer ignores running averages that it does not track."""
        untracked = self.running_mean is None or not self.track_running_stats
        base: Statistics = Batch() if untracked else self.averaging
        return base if self.chosen is None else self.chosen.on(base)

    def _call(
        self,
        input: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        domain: str | None = None,
    ) -> Any:
        # One sample may come without its batch axis, as torch's layer takes it.
        if input.dim() == self.forms[0].count(","):
            if residual is not None:
                refuse_residual(input, residual, self)
            scale, shift, residual, mask, lengths = (
                None if t is None else t[None] for t in (scale, shift, residual, mask, lengths)
            )
            found = super()._call(input[None], scale, shift, residual, mask, lengths, domain)
            return tuple(t[0] for t in found) if isinstance(found, tuple) else found[0]
        return super()._call(input, scale, shift, residual, mask, lengths, domain)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    r"""Instance normalization of (N, C, L), per sample and channel over the positions.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``n c [...]``. With ``track_running_stats`` the running averages take the average over the samples
    in, and normalize in evaluation.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as ``torch.nn.InstanceNorm1d``.
        decay: the other convention of momentum.

    Shape:
        (N, C, L) or (C, L) to the same; γ, β and the running averages are (C,).

    Source:
        Ulyanov, Vedaldi & Lempitsky, "Instance Normalization" (2016), eq. 7.

    >>> InstanceNorm1d(3)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    forms = ("(N, C, L)",)


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Instance normalization of images (N, C, H, W) or (C, H, W); see :class:`InstanceNorm1d`.

    Shape:
        (N, C, H, W) or (C, H, W) to the same, any memory format.

    >>> InstanceNorm2d(3)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    forms = ("(N, C, H, W)",)


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Instance normalization of volumes (N, C, D, H, W) or (C, D, H, W); see :class:`InstanceNorm1d`.

    Shape:
        (N, C, D, H, W) or (C, D, H, W) to the same, any memory format.

    >>> InstanceNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    forms = ("(N, C, D, H, W)",)

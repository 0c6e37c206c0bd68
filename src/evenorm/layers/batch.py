"""Batch normalization: statistics per channel, over the batch and the positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.layers.layer import BatchLayer
from evenorm.pattern import Pattern

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "FusedBatchNorm1d", "FusedBatchNorm2d", "FusedBatchNorm3d"]


class _BatchNorm(BatchLayer):
    pattern, scaling, history_axes = Pattern.parse("[n] c [...]"), Affine("c"), ("c",)
    fused: type[_BatchNorm] | None = None

    def __new__(cls, *args: Any, activation: str | Epilogue | None = None, **kwargs: Any) -> Self:
        """With an activation, the class that other people's converters leave alone.

        They rebuild every ``_BatchNorm`` of torch's as a bare one, and would drop the activation in silence.
        """
        fused: Any = cls.__dict__.get("fused")
        if activation is None or fused is None:
            return super().__new__(cls)
        return fused(*args, activation=activation, **kwargs)


class FusedBatchNorm1d(_BatchNorm, _NormBase):
    """What ``BatchNorm1d(…, activation=…)`` makes: the same layer, but no ``torch.nn.BatchNorm1d``."""

    forms = ("(N, C)", "(N, C, L)")


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L), per channel over the batch and the positions.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``. In training the batch's biased variance normalizes and the running averages take
    mean and unbiased variance in; in evaluation the running averages normalize.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as ``torch.nn.BatchNorm1d``.
        decay: the other convention of momentum: ``decay=0.99`` is ``momentum=0.01``.
        activation: what follows, in the same sweep: ``"relu"``, ``"silu"``, an :class:`Epilogue`. The layer is
            then no ``torch.nn.BatchNorm1d``, whose converters would drop it.

    Shape:
        (N, C) or (N, C, L) to the same; γ, β and the running averages are (C,).

    Source:
        Ioffe & Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.

    >>> BatchNorm1d(3)(torch.ones(4, 3)).tolist()[0]
    [0.0, 0.0, 0.0]
    """

    forms, fused = FusedBatchNorm1d.forms, FusedBatchNorm1d


class FusedBatchNorm2d(_BatchNorm, _NormBase):
    """What ``BatchNorm2d(…, activation=…)`` makes: the same layer, but no ``torch.nn.BatchNorm2d``."""

    forms = ("(N, C, H, W)",)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch normalization of images (N, C, H, W), per channel over the batch and the pixels.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``; arguments, statistics and source as in :class:`BatchNorm1d`.

    Shape:
        (N, C, H, W) to the same, any memory format.

    >>> BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    forms, fused = FusedBatchNorm2d.forms, FusedBatchNorm2d


class FusedBatchNorm3d(_BatchNorm, _NormBase):
    """What ``BatchNorm3d(…, activation=…)`` makes: the same layer, but no ``torch.nn.BatchNorm3d``."""

    forms = ("(N, C, D, H, W)",)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    r"""Batch normalization of volumes (N, C, D, H, W), per channel over the batch and the voxels.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``; arguments, statistics and source as in :class:`BatchNorm1d`.

    Shape:
        (N, C, D, H, W) to the same, any memory format.

    >>> BatchNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    forms, fused = FusedBatchNorm3d.forms, FusedBatchNorm3d

"""Batch normalization: statistics per channel, over the batch and the positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.layers.remembering import BatchLayer
from evenorm.pattern import Pattern, naming
from evenorm.statistics import Statistics, Synced, parts

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FusedBatchNorm1d",
    "FusedBatchNorm2d",
    "FusedBatchNorm3d",
    "SyncBatchNorm",
]


class _BatchNorm(BatchLayer):
    pattern, scaling, history_axes = Pattern.parse("[n] c [...]"), Affine("c"), ("c",)
    fused: type[_BatchNorm] | None = None

    def __new__(
        cls,
        *args: Any,
        activation: str | Epilogue | None = None,
        statistics: Statistics | None = None,
        **kwargs: Any,
    ) -> Self:
        """With an activation or statistics, the class that other people's converters leave alone.

        They rebuild every ``_BatchNorm`` of torch's as a bare one, and would drop both in silence.
        """
        fused: Any = cls.__dict__.get("fused")
        if fused is None or (activation is None and statistics is None):
            return super().__new__(cls)
        return fused(*args, activation=activation, statistics=statistics, **kwargs)


class FusedBatchNorm1d(_BatchNorm, _NormBase):
    """What ``BatchNorm1d(…, activation=…, statistics=…)`` makes: the same layer, but no ``torch.nn.BatchNorm1d``."""

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
        statistics: where mean and variance come from: ``Renorm()``, ``Synced()``, ``Running(0.1, "biased")``, … Here
            too the layer is no ``torch.nn.BatchNorm1d``.

    Shape:
        (N, C) or (N, C, L) to the same; γ, β and the running averages are (C,).

    Source:
        Ioffe & Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.

    >>> BatchNorm1d(3)(torch.ones(4, 3)).tolist()[0]
    [0.0, 0.0, 0.0]
    """

    forms, fused = FusedBatchNorm1d.forms, FusedBatchNorm1d


class FusedBatchNorm2d(_BatchNorm, _NormBase):
    """What ``BatchNorm2d(…, activation=…, statistics=…)`` makes: the same layer, but no ``torch.nn.BatchNorm2d``."""

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
    """What ``BatchNorm3d(…, activation=…, statistics=…)`` makes: the same layer, but no ``torch.nn.BatchNorm3d``."""

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


class SyncBatchNorm(_BatchNorm, _NormBase):
    r"""Batch normalization over the batches of all processes of a group.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``, the batch being that of all ranks: see :class:`Synced`. On CPUs over gloo (on GPUs
    over NCCL, which has not been run yet); with uneven and empty batches; the statistics are float64 whatever the input
    is. It is no ``torch.nn.SyncBatchNorm``, which DistributedDataParallel refuses on CPUs.

    Args:
        num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype: as
            ``torch.nn.SyncBatchNorm``.
        statistics: what is synchronized: ``Running(0.1, "biased")``, ``Accumulated(4)``; or ``Renorm(of=Synced())``
            and other compositions with a :class:`Synced` of their own.

    Shape:
        (N, C, …) to the same; γ, β and the running averages are (C,).

    Source:
        Ioffe & Szegedy (2015), algorithm 1; Peng et al., "MegDet" (2018), section 3.3.

    >>> SyncBatchNorm(3).eval()(torch.randn(2, 3, 5)).shape
    torch.Size([2, 3, 5])
    """

    forms = ("(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        decay: float | None = None,
        activation: str | Epilogue | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        with naming("SyncBatchNorm"):
            if not isinstance(statistics, Statistics) or not any(isinstance(p, Synced) for p in parts(statistics)):
                statistics = Synced(process_group, of=statistics)
            elif process_group is not None:
                raise ValueError(f"got process_group= beside {statistics}; give it to the Synced(…) inside")
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats, device, dtype),
            bias=bias,
            decay=decay,
            activation=activation,
            statistics=statistics,
        )

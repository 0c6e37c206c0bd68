"""The layers. Each has torch's constructor and state dict, and is one recipe.

Where torch has a layer of the same name ours derives from it, so ``isinstance`` holds and torch's
initializers, optimizers and exporters know it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from evenorm.affine import Affine, Cast
from evenorm.functional import compute, remember
from evenorm.layer import BatchLayer, Layer
from evenorm.moments import Moments
from evenorm.pattern import Pattern
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, Statistics

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "RMSNorm",
    "RMSNorm2d",
]


class _BatchNorm(BatchLayer):
    pattern, scaling, history_axes = Pattern.parse("[n] c [...]"), Affine("c"), ("c",)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L), per channel over the batch and the positions.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``. In training the batch's biased variance normalizes and the running averages take
    mean and unbiased variance in; in evaluation the running averages normalize.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as ``torch.nn.BatchNorm1d``.
        decay: the other convention of momentum: ``decay=0.99`` is ``momentum=0.01``.

    Shape:
        (N, C) or (N, C, L) to the same; γ, β and the running averages are (C,).

    Source:
        Ioffe & Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.

    >>> BatchNorm1d(3)(torch.ones(4, 3)).tolist()[0]
    [0.0, 0.0, 0.0]
    """

    forms = ("(N, C)", "(N, C, L)")


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch normalization of images (N, C, H, W), per channel over the batch and the pixels.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``; arguments, statistics and source as in :class:`BatchNorm1d`.

    Shape:
        (N, C, H, W) to the same, any memory format.

    >>> BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    forms = ("(N, C, H, W)",)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    r"""Batch normalization of volumes (N, C, D, H, W), per channel over the batch and the voxels.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``[n] c [...]``; arguments, statistics and source as in :class:`BatchNorm1d`.

    Shape:
        (N, C, D, H, W) to the same, any memory format.

    >>> BatchNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    forms = ("(N, C, D, H, W)",)


class _GhostBatchNorm(BatchLayer, _NormBase):
    scaling, history_axes = Affine("c"), ("c",)

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        decay: float | None = None,
    ) -> None:
        if not isinstance(virtual_batch_size, int) or virtual_batch_size < 1:
            raise ValueError(
                f"{type(self).__name__}: virtual_batch_size must be a positive integer, got {virtual_batch_size!r}"
            )
        self.virtual_batch_size = virtual_batch_size
        self.pattern = Pattern.parse("(k [n]) c [...]", n=virtual_batch_size)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, decay=decay
        )

    def normalize(self, input: Tensor, recipe: Recipe, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The whole chunks in one call, a short last chunk in another; the history sees all of them at once."""
        tail = self._tail(input)
        if not tail or (self.history is not None and recipe.statistics.remembers(self.training)):
            return super().normalize(input, recipe, weight, bias)
        whole, rest = slice(None, -tail), slice(-tail, None)
        parts = [(recipe, whole)] if input.shape[0] > tail else []
        parts.append((replace(recipe, pattern=recipe.pattern.with_sizes(n=tail)), rest))
        # Parameters given per sample go with their samples.
        per_sample = "n" in recipe.affine.axes
        results = []
        for part, rows in parts:
            own = [p[rows] if p is not None and per_sample else p for p in (weight, bias)]
            results.append(compute(part, input[rows], *own, None, self))
        if self.training and self.history is not None:
            remember(recipe, self.history, Moments.concatenated(m for _, m in results if m is not None))
        return torch.cat([y for y, _ in results])

    def check(self, input: Tensor, recipe: Recipe) -> None:
        """As every layer; the short last chunk must have values enough too."""
        tail = self._tail(input)
        if tail:
            input, recipe = input[-tail:], replace(recipe, pattern=recipe.pattern.with_sizes(n=tail))
        super().check(input, recipe)

    def _tail(self, input: Tensor) -> int:
        return input.shape[0] % self.virtual_batch_size if input.dim() else 0

    def extra_repr(self) -> str:
        """Torch's, and the virtual batch size."""
        return f"{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}"


class GhostBatchNorm1d(_GhostBatchNorm):
    r"""Batch normalization of (N, C) or (N, C, L) over virtual batches of the batch.

    .. math:: y = \frac{x - \mu_{kc}}{\sqrt{\sigma_{kc}^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``(k [n]) c [...]``. The last chunk may be short. The running averages take the average of the
    chunks' means and unbiased variances in, and evaluation is batch normalization's.

    Args:
        virtual_batch_size: samples per chunk.
        num_features, eps, momentum, affine, track_running_stats, device, dtype, decay: as :class:`BatchNorm1d`.

    Source:
        Hoffer, Hubara & Soudry, "Train longer, generalize better" (2017), algorithm 1.

    >>> GhostBatchNorm1d(3, virtual_batch_size=4)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """

    forms = ("(N, C)", "(N, C, L)")


class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch normalization of images (N, C, H, W); see :class:`GhostBatchNorm1d`.

    >>> GhostBatchNorm2d(3, virtual_batch_size=2)(torch.randn(4, 3, 5, 5)).shape
    torch.Size([4, 3, 5, 5])
    """

    forms = ("(N, C, H, W)",)


class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch normalization of volumes (N, C, D, H, W); see :class:`GhostBatchNorm1d`.

    >>> GhostBatchNorm3d(3, virtual_batch_size=2)(torch.randn(4, 3, 5, 5, 5)).shape
    torch.Size([4, 3, 5, 5, 5])
    """

    forms = ("(N, C, D, H, W)",)


class _InstanceNorm(BatchLayer):
    pattern, scaling, history_axes = Pattern.parse("n c [...]"), Affine("c"), ("c",)

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
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, decay=decay
        )

    @property
    def statistics(self) -> Statistics:  # type: ignore[override]
        """As batch normalization's; but torch's layer ignores running averages that it does not track."""
        return super().statistics if self.track_running_stats else Batch()

    def forward(self, input: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalize; one sample may come without its batch axis, as torch's layer takes it."""
        if isinstance(input, Tensor) and input.dim() == self.forms[0].count(",") :
            return super().forward(input[None], scale=scale, shift=shift)[0]
        return super().forward(input, scale=scale, shift=shift)


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

    >>> InstanceNorm2d(3)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    forms = ("(N, C, H, W)",)


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Instance normalization of volumes (N, C, D, H, W) or (C, D, H, W); see :class:`InstanceNorm1d`.

    >>> InstanceNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    forms = ("(N, C, D, H, W)",)


class GroupNorm(Layer, nn.GroupNorm):
    r"""Group normalization of (N, C, …), per sample over groups of channels and the positions.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} \cdot \gamma_c + \beta_c

    Pattern ``n (g [c]) [...]``.

    Args:
        num_groups, num_channels, eps, affine, device, dtype, bias: as ``torch.nn.GroupNorm``.

    Shape:
        (N, C, …) to the same, any memory format; γ and β are (C,).

    Source:
        Wu & He, "Group Normalization" (2018), eq. 7.

    >>> GroupNorm(2, 6)(torch.randn(4, 6, 5)).shape
    torch.Size([4, 6, 5])
    """

    scaling = Affine("g c")
    least_values = 2

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, *args: Any, **kwargs: Any) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups must divide num_channels, got {num_groups} groups and {num_channels} channels"
            )
        super().__init__(num_groups, num_channels, eps, *args, **kwargs)
        self.pattern = Pattern.parse("n (g [c]) [...]", g=num_groups, c=num_channels // num_groups)
        self.validate()


def _last_axes(shape: tuple[int, ...]) -> tuple[Pattern, tuple[str, ...]]:
    """Pattern and affine axes of a normalization over the last axes."""
    sizes = {"d" if len(shape) == 1 else f"d{k}": size for k, size in enumerate(shape)}
    return Pattern.parse(f"... [{' '.join(sizes)}]", **sizes), tuple(sizes)


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pattern, axes = _last_axes(self.normalized_shape)
        self.scaling = Affine(axes)
        self.validate()


class RMSNorm(Layer, nn.RMSNorm):
    r"""Root mean square normalization over the last axes: no mean is subtracted.

    .. math:: y = \frac{x}{\sqrt{\frac{1}{d}\sum x^2 + \epsilon}} \odot (\text{offset} + \gamma)

    Pattern ``... [d]``, not centered.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as ``torch.nn.RMSNorm``; ``eps=None`` is the
            machine epsilon of the input's dtype.
        weight_offset: 1 for Gemma's 1 + weight, whose weight starts at 0.
        cast: ``"before"`` rounds to the input's dtype before scaling (Llama), ``"after"`` once at the end.

    Source:
        Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), eq. 4.

    >>> RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])) * 12.5**0.5
    tensor([3.0000, 4.0000], grad_fn=<MulBackward0>)
    """

    bias = None
    centered = False

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_offset: float = 0.0,
        cast: Cast = "after",
    ) -> None:
        self.scaling = Affine((), weight_offset, cast)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.pattern, axes = self._axes()
        self.scaling = Affine(axes, weight_offset, cast)
        self.validate()

    def _axes(self) -> tuple[Pattern, tuple[str, ...]]:
        return _last_axes(self.normalized_shape)

    def reset_parameters(self) -> None:
        """The weight starts where offset + weight is 1."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.scaling.offset)



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

    def __init__(self, num_channels: int, eps: float = 1e-6, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_channels, eps, *args, **kwargs)
        self.pattern = Pattern.parse("n [c] h w", c=num_channels)
        self.validate()


class RMSNorm2d(RMSNorm):
    """Root mean square normalization over the channels of (N, C, H, W); see :class:`RMSNorm`, :class:`LayerNorm2d`.

    >>> RMSNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    forms = ("(N, C, H, W)",)

    def _axes(self) -> tuple[Pattern, tuple[str, ...]]:
        return Pattern.parse("n [c] h w", c=self.normalized_shape[0]), ("c",)

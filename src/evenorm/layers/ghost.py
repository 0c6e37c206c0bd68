"""Ghost batch normalization: statistics per channel and virtual batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.functional import compute, recomputing, remember
from evenorm.layers.remembering import BatchLayer
from evenorm.moments import Moments
from evenorm.pattern import Binding, Pattern
from evenorm.recipe import Recipe
from evenorm.statistics import Accumulated, Statistics, Synced

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


_APART = "a ghost batch is one that shares its statistics with no other; use BatchNorm"


class _GhostBatchNorm(BatchLayer, _NormBase):
    scaling, history_axes = Affine("c"), ("c",)
    meaningless: ClassVar[Mapping[type[Statistics], str]] = {
        Synced: f"it merges those of all processes, and {_APART}",
        Accumulated: f"it merges those of a window, and {_APART}",
    }

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
        activation: str | Epilogue | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        if type(virtual_batch_size) is not int or virtual_batch_size < 1:
            raise ValueError(
                f"{type(self).__name__}: virtual_batch_size must be a positive integer, got {virtual_batch_size!r}"
            )
        self.virtual_batch_size = virtual_batch_size
        self.pattern = Pattern.parse("(k [n]) c [...]", n=virtual_batch_size)
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats, device, dtype),
            bias=bias,
            decay=decay,
            activation=activation,
            statistics=statistics,
        )

    def normalize(
        self,
        input: Tensor,
        recipe: Recipe,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        place: int | None,
    ) -> Tensor:
        """The whole chunks in one call, a short last chunk in another; the history sees all of them at once."""
        tail = self._tail(input)
        if not tail or (self.history is not None and recipe.statistics.remembers(self.training)):
            return super().normalize(input, recipe, weight, bias, residual, mask, place)
        history = self.history
        if history is not None and place is not None:
            history = history.of(place)
        read = history if recipe.source.is_alone else self._as_before(history)
        whole, rest = slice(None, -tail), slice(-tail, None)
        parts = [(recipe, whole)] if input.shape[0] > tail else []
        parts.append((replace(recipe, pattern=recipe.pattern.with_sizes(n=tail)), rest))
        # Parameters given per sample go with their samples; the others get gradients from both calls, whose
        # sum is rounded once.
        per_sample = "n" in recipe.affine.axes
        weight, bias = (p if p is None else p.to(torch.promote_types(p.dtype, torch.float32)) for p in (weight, bias))
        results = []
        for part, rows in parts:
            scale, shift = (p[rows] if p is not None and per_sample else p for p in (weight, bias))
            added = None if residual is None else residual[rows]
            valid = mask[rows] if mask is not None and mask.shape[0] > 1 else mask
            results.append(
                compute(
                    *(part, input[rows], scale, shift, self),
                    residual=added,
                    mask=valid,
                    given=None,
                    observing=read if self.training else None,
                    training=self.training,
                )
            )
        moments = [m for _, m in results if m is not None]
        if moments and history is not None and not recomputing():
            after = remember(recipe, history, Moments.concatenated(moments), self)
            if after is not None:
                history.become(after)
        y = torch.cat([y for y, _ in results])
        natural = torch.empty_like(input)
        return y if y.stride() == natural.stride() else natural.copy_(y)

    def smallest(self, input: Tensor, recipe: Recipe) -> tuple[Pattern, tuple[int, ...]]:
        """The short last chunk, if there is one."""
        tail = self._tail(input)
        if not tail:
            return super().smallest(input, recipe)
        return recipe.pattern.with_sizes(n=tail), (tail, *input.shape[1:])

    def _bound(self, recipe: Recipe, input: Tensor) -> Binding:
        # Chunks of one divide every batch, and have the same axes.
        return recipe.pattern.with_sizes(n=1).bind(input.shape)

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

    Shape:
        (N, C) or (N, C, L) to the same; γ, β and the running averages are (C,).

    Source:
        Hoffer, Hubara & Soudry, "Train longer, generalize better" (2017), algorithm 1.

    >>> GhostBatchNorm1d(3, virtual_batch_size=4)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """

    forms = ("(N, C)", "(N, C, L)")


class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch normalization of images (N, C, H, W); see :class:`GhostBatchNorm1d`.

    Shape:
        (N, C, H, W) to the same, any memory format.

    >>> GhostBatchNorm2d(3, virtual_batch_size=2)(torch.randn(4, 3, 5, 5)).shape
    torch.Size([4, 3, 5, 5])
    """

    forms = ("(N, C, H, W)",)


class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch normalization of volumes (N, C, D, H, W); see :class:`GhostBatchNorm1d`.

    Shape:
        (N, C, D, H, W) to the same, any memory format.

    >>> GhostBatchNorm3d(3, virtual_batch_size=2)(torch.randn(4, 3, 5, 5, 5)).shape
    torch.Size([4, 3, 5, 5, 5])
    """

    forms = ("(N, C, D, H, W)",)

"""The operands of a call, laid as a plan wants them, and its results, laid as the caller wants them."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from evenorm.kernels.finish import Finish
from evenorm.plan import Plan, Strides

__all__ = ["Operands", "dense_strides"]


class Operands:
    """The tensors of one call where a fused kernel wants them."""

    def __init__(
        self, plan: Plan, x: Tensor, finish: Finish, dy: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.plan, self.like, self.finish, self.mask = plan, x, finish, mask
        self.x = x if plan.x is not None else self.dense(x)
        self.dy = dy if dy is None or plan.dy is not None else self.dense(dy)
        self.residual, self.output = self.beside(finish.residual), self.beside(finish.output)

    def new_output(self) -> Tensor:
        """Room for y or dx, dense in the plan's order."""
        return torch.empty_strided(self.like.shape, self.plan.dense, dtype=self.like.dtype, device=self.like.device)

    def new_residual_gradient(self) -> Tensor | None:
        """Room for dz, where it is wanted and not dy."""
        differs = self.finish.epilogue.activation != "identity" or self.mask is not None
        return self.new_output() if differs and self.finish.has_residual else None

    def residual_gradient(self, dy: Tensor, dz: Tensor | None) -> Tensor | None:
        """The residual's gradient."""
        if dz is None:
            return dy if self.finish.has_residual else None
        return self.natural(dz)

    def natural(self, output: Tensor) -> Tensor:
        """The output in the memory format that torch would give it; a copy where the plan had to permute."""
        natural = torch.empty_like(self.like) if self.plan.x is None else output
        return output if natural.stride() == output.stride() else natural.copy_(output)

    def new_statistics(self) -> Tensor:
        """Room for one number per statistic, in memory's order."""
        return torch.empty(self.statistics_shape, dtype=torch.float64, device=self.like.device)

    def new_parameter(self) -> Tensor:
        """Room for one number per parameter, in memory's order."""
        return torch.empty(self.parameter_shape, dtype=torch.float64, device=self.like.device)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """The statistics' shape in memory's order."""
        return _ordered(self.plan.statistics_shape, self.plan.statistic_order)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The parameters' shape in memory's order."""
        return _ordered(self.plan.parameter_shape, self.plan.parameter_order)

    def to_memory(self, statistics: Tensor) -> Tensor:
        """Statistics from the pattern's order."""
        statistics = statistics.reshape(self.plan.statistics_shape)
        return _permuted(statistics, self.plan.statistic_order).contiguous()

    def to_pattern(self, statistics: Tensor) -> Tensor:
        """Statistics into the pattern's order."""
        return _unpermuted(statistics, self.plan.statistic_order)

    def to_affine(self, parameter: Tensor) -> Tensor:
        """A parameter's gradient into the order of the affine's axes."""
        return _unpermuted(parameter, self.plan.parameter_order)

    def parameter(self, parameter: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
        """A weight or bias in memory's order, and in a dtype where one is asked for.

        Raises:
            ValueError: it has another number of values than the affine's axes; a compiled graph asks here first.
        """
        order = self.plan.parameter_order
        if parameter is not None and parameter.numel() != prod(self.plan.parameter_shape):
            raise ValueError(
                f"expected a weight and bias of {prod(self.plan.parameter_shape)} values each for an input of shape "
                f"{tuple(self.like.shape)}, got shape {tuple(parameter.shape)}"
            )
        if parameter is None or (order is None and dtype in (None, parameter.dtype) and parameter.is_contiguous()):
            return parameter
        shaped = parameter.detach().to(dtype or parameter.dtype).reshape(self.plan.parameter_shape)
        return _permuted(shaped, order).contiguous()

    def dense(self, tensor: Tensor) -> Tensor:
        """A copy that lies as the output does."""
        return self.new_output().copy_(tensor)

    def beside(self, tensor: Tensor | None) -> Tensor | None:
        """A residual, an output or another gradient as the plan's output lies.

        Raises:
            ValueError: it has another shape, of which its strides may tell nothing.
        """
        if tensor is not None and tensor.shape != self.like.shape:
            raise ValueError(
                f"expected a residual of the input's shape {tuple(self.like.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor is None or (tensor.stride() == self.plan.dense and tensor.dtype == self.like.dtype):
            return None if tensor is None else tensor.resolve_neg()
        return self.dense(tensor)


@lru_cache(maxsize=4096)
def dense_strides(shape: tuple[int, ...], strides: Strides) -> Strides:
    """How a new tensor like one that lies so would lie; none is made."""
    return torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()


def _ordered(shape: tuple[int, ...], order: tuple[int, ...] | None) -> tuple[int, ...]:
    return shape if order is None else tuple(shape[k] for k in order)


def _permuted(tensor: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return tensor if order is None else tensor.permute(order)


def _unpermuted(tensor: Tensor, order: tuple[int, ...] | None) -> Tensor:
    if order is None:
        return tensor
    # As a compiled graph expects it, for which fake kernels have told strides.
    return tensor.permute(sorted(range(len(order)), key=order.__getitem__)).contiguous()

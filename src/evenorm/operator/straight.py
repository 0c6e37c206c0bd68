"""A call that goes straight to the extension: everything about it is known but its numbers.

What the whole way asks of every call (shapes, the kernel, the plan) is asked once for tensors of one shape,
strides and dtype. What may change between calls (modes, gradients, parameters put in place of others) is asked
each time, and where an answer is another one the call goes the whole way.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import cpu
from evenorm.operator.recorded import Gradients, Operands, record, record_sum
from evenorm.operator.settings import Settings
from evenorm.recipe import Recipe
from evenorm.statistics import Cumulative, History, Running
from evenorm.statistics.absorb import refuse

__all__ = ["Straight"]

_DOUBLES = torch.empty(0, dtype=torch.float64)

Kind = Literal["batch", "observed", "given"]
"""This batch's statistics; the same, taken into a history; the history's."""


class Straight:
    """One kind of call of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        history: History | None,
        training: bool,
    ) -> None:
        """See :meth:`of`."""
        self.kind: Kind = "batch"
        pattern, axes = recipe.pattern.text, recipe.axes
        if history is not None and recipe.statistics.remembers(training):
            self.kind, pattern, axes = "given", recipe.remembered, recipe.remembered_axes
        elif history is not None and training:
            self.kind = "observed"
        epilogue = recipe.epilogue
        self.settings = Settings.of(recipe, pattern, axes, x.dtype)
        self.pattern, self.affine, self.epilogue = self.settings.parsed()
        self.activation, self.by_output = epilogue.activation, epilogue.by_output
        self.before = epilogue.residual == "before"
        self.average = recipe.source.average
        self.parameters = tuple(None if p is None else (p.dtype, p.shape) for p in (weight, bias))
        self.parameter_dtype = next((p.dtype for p in (weight, bias) if p is not None), x.dtype)
        self.history = None if history is None else (history.mean.dtype, history.mean.shape)
        self.updates = None if history is None or history.updates is None else (torch.int64, torch.Size())
        self.history_code = None if history is None else cpu.DTYPES.get(history.mean.dtype)
        self.native = self._native(x, None)
        self.natives: dict[tuple[int, ...], Any] = {}
        binding = self.pattern.bind(x.shape)
        self.values, self.strides = binding.count, torch.empty_like(x).stride()
        # Where nothing but this batch decides the statistics of a sum, it is made in the same sweep.
        self.dense = x.stride() == self.strides
        self.adds = self.dense and self.kind == "batch" and history is None
        self.statistics = (2, prod(binding.statistics_shape))

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        history: History | None,
        training: bool,
    ) -> Straight | None:
        """The way for calls like this one, which went well; ``None`` where only the whole way is right."""
        parameters = [p for p in (weight, bias) if p is not None]
        observed = history is not None and training and not recipe.statistics.remembers(training)
        if (
            not x.is_cpu
            or not recipe.source.is_alone
            or kernels.must_compose(x, weight, bias) is not None
            or 0 in x.shape
            or len({p.dtype for p in parameters}) > 1
            or (history is not None and (history.window or history.mean.dtype not in cpu.DTYPES))
            or (observed and set(recipe.history) != {f.name for f in recipe.pattern.factors if not f.reduced})
            or (observed and not isinstance(recipe.source.average, (Running, Cumulative)))
            or getattr(recipe.source.average, "variance", None) == "population"
        ):
            return None
        made = cls(recipe, x, weight, bias, history, training)
        kernel = kernels.choose(x, made.pattern, made.affine, recipe.kernel)
        return made if kernel is cpu and made.native is not None else None

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        history: History | None,
        caller: object,
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """y, and of a residual that goes before the sum; ``None`` where this call must go the whole way.

        Then nothing was written.
        """
        expected_weight, expected_bias = self.parameters
        if (
            not _is(weight, expected_weight)
            or not _is(bias, expected_bias)
            or (residual is not None and not self._lies_beside(x, residual))
            or (history is not None and not self._is_mine(history))
            or kernels.must_compose(x, weight, bias, residual) is not None
        ):
            return None
        before = residual is not None and self.before
        if before and not self.adds:
            return self._of_sum_apart(x, weight, bias, residual, history, caller)
        recorded = torch.is_grad_enabled() and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
            or (residual is not None and residual.requires_grad)
        )
        if residual is not None and before:
            y, total, statistics = self.forward_of_sum(x, weight, bias, residual, keep=recorded)
            if not recorded:
                return y, total
            return record_sum(x, residual, weight, bias, self, (y, total, statistics))
        y, statistics = self.forward(x, weight, bias, residual, history, keep=recorded)
        if recorded:
            y = record(x, weight, bias, residual, self, (y, statistics))
        if self.kind == "observed" and torch._C._current_graph_task_id() == -1:
            assert history is not None
            assert statistics is not None
            self._observe(history, statistics, caller)
        return y

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        history: History | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """y, and mean and M2 of this batch; where statistics are given mean and rstd. Kept where they are wanted."""
        y = torch.empty_like(x)
        operands = (_place(weight), _place(bias), _place(residual))
        if self.kind == "batch" and not keep:
            self.native.forward(x.data_ptr(), y.data_ptr(), 0, 0, *operands)
            return y, None
        if self.kind == "given":
            assert history is not None
            statistics = _DOUBLES.new_empty(self.statistics) if keep else None
            averages = (history.mean.data_ptr(), history.variance.data_ptr(), self.history_code)
            self.native.remembered(x.data_ptr(), y.data_ptr(), *averages, *_places(statistics), *operands)
            return y, statistics
        statistics = _DOUBLES.new_empty(self.statistics)
        self.native.forward(x.data_ptr(), y.data_ptr(), *_places(statistics), *operands)
        return y, statistics

    def forward_of_sum(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """y, x + residual that was normalized, and mean and M2 of it where they are wanted."""
        y, total = torch.empty_like(x), torch.empty_like(x)
        statistics = _DOUBLES.new_empty(self.statistics) if keep else None
        operands = (*_places(statistics), _place(weight), _place(bias), 0, 0, residual.data_ptr(), total.data_ptr())
        self.native.forward(x.data_ptr(), y.data_ptr(), *operands)
        return y, total, statistics

    def backward(self, dy: Tensor, operands: Operands, carried: Tensor | None = None) -> Gradients:
        """The gradients of x, weight and bias, and of a residual behind an activation.

        ``carried``, which the input's gradient has by other ways, is added to it.
        """
        x, weight, bias, residual, output, statistics = operands
        native = self._backward_native(dy, x)
        if native is None:
            dy = torch.empty_like(x).copy_(dy)
            native = self._backward_native(dy, x)
        dx = torch.empty_like(x)
        d_weight = None if weight is None else torch.empty_like(weight)
        d_bias = None if bias is None else torch.empty_like(bias)
        d_residual = None if residual is None and output is None else torch.empty_like(x)
        if carried is not None and not self._lies_beside(x, carried):
            carried = torch.empty_like(x).copy_(carried)
        native.gradients(
            self.kind == "given",
            dy.data_ptr(),
            x.data_ptr(),
            dx.data_ptr(),
            *_places(statistics),
            *(_place(weight), _place(bias), _place(residual), _place(output)),
            *(_place(d_weight), _place(d_bias), _place(d_residual), _place(carried)),
        )
        return dx, d_weight, d_bias, d_residual

    def _of_sum_apart(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        history: History | None,
        caller: object,
    ) -> tuple[Tensor, Tensor] | None:
        """y and x + residual, one after the other; ``None`` where the sum would lie otherwise than x."""
        if not self.dense or residual is None:
            return None
        total = x + residual
        y = self(total, weight, bias, None, history, caller)
        return (y, total) if isinstance(y, Tensor) else None

    def variance_or_m2(self, spread: Tensor) -> Tensor:
        """What stands beside the mean, as the whole way has it."""
        return spread.square().reciprocal() - self.settings.eps if self.kind == "given" else spread

    def _is_mine(self, history: History) -> bool:
        """Whether the extension can read and write a history as it could when the way was found."""
        mean, variance = history.mean, history.variance
        if not _is(mean, self.history) or not _is(variance, self.history) or mean.requires_grad:
            return False
        return not variance.requires_grad and (self.kind == "given" or _is(history.updates, self.updates))

    def _lies_beside(self, x: Tensor, residual: Tensor) -> bool:
        """Whether the extension can read a residual as it is."""
        return (
            type(residual) in (Tensor, torch.nn.Parameter)
            and residual.dtype is x.dtype
            and residual.shape == x.shape
            and residual.is_cpu
            and residual.layout is torch.strided
            and residual.stride() == self.strides
            and not residual.is_neg()
        )

    def _backward_native(self, dy: Tensor, x: Tensor) -> Any:
        strides = dy.stride()
        if strides not in self.natives:
            self.natives[strides] = self._native(x, strides)
        return None if dy.is_neg() else self.natives[strides]

    def _native(self, x: Tensor, grad_strides: tuple[int, ...] | None) -> Any:
        settings = (self.settings.centered, self.settings.eps, x.dtype, self.parameter_dtype)
        return cpu.straight(x, self.pattern, self.affine, self.epilogue, *settings, grad_strides)

    def _observe(self, history: History, statistics: Tensor, caller: object) -> None:
        """The history takes the batch in, last of all."""
        average = self.average
        assert isinstance(average, (Running, Cumulative))
        divisor = self.values if average.variance == "biased" else max(self.values - 1, 1)
        share = float(average.share(history.updates))
        if not cpu.absorb(history.mean, history.variance, *_places(statistics), divisor, share, history.updates):
            refuse(average, caller)
            if history.skipped is not None:
                history.skipped.add_(1)


def _place(tensor: Tensor | None) -> int:
    """The address of an operand."""
    return 0 if tensor is None else tensor.data_ptr()


def _places(pair: Tensor | None) -> tuple[int, int]:
    """The addresses of two rows of float64."""
    if pair is None:
        return 0, 0
    first = pair.data_ptr()
    return first, first + pair.nbytes // 2


def _is(tensor: Tensor | None, expected: tuple[torch.dtype, torch.Size] | None) -> bool:
    """Whether a parameter or an average is what it was when the way was found."""
    if tensor is None or expected is None:
        return tensor is None and expected is None
    return tensor.dtype is expected[0] and tensor.shape == expected[1] and tensor.is_contiguous() and tensor.is_cpu

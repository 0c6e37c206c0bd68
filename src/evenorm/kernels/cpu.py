"""The fused C++ kernels, called with raw pointers.

The extension knows nothing of PyTorch and is not built against it. Plans are made here, inside the operator,
and kept: one for each pattern, affine, shape and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.kernels import mask as masks
from evenorm.kernels.finish import Finish
from evenorm.kernels.operands import Operands, dense_strides
from evenorm.kernels.signature import Signature
from evenorm.pattern import Binding, Pattern
from evenorm.plan import Plan, Strides, Unplannable, make_plan

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "DTYPES",
    "absorb",
    "apply",
    "available",
    "backward",
    "declines",
    "forward",
    "forward_of_sum",
    "grad_input",
    "grad_sums",
    "moments",
    "name",
    "straight",
]

name = "cpu"

_cpu: ModuleType | None
try:
    from evenorm import _cpu  # type: ignore[no-redef]
except ImportError:
    _cpu = None

DTYPES = {} if _cpu is None else {getattr(torch, dtype): code for dtype, code in _cpu.DTYPES.items()}
"""Dtypes that the extension reads and writes, by its codes."""

_NOTHING = Finish(Affine(), Epilogue())


def available() -> bool:
    """Whether the extension was built."""
    return _cpu is not None


class _Planned(NamedTuple):
    """A plan, and the same for the extension."""

    plan: Plan
    native: Any


def _flags(plan: Plan, binding: Binding, mask: Sequence[int]) -> list[list[int]]:
    """How many flags a mask of this shape has along the factors of each level: all, if it varies in the level."""
    varies = [any(mask[binding.axes[i]] != 1 for i in level) for level in plan.factors]
    return [[binding.shape[i] if v else 1 for i in level] for level, v in zip(plan.factors, varies, strict=True)]


def _mask_strides(flags: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Strides of the levels in a dense mask, 0 where it does not vary."""
    sizes = [prod(level) for level in flags]
    return tuple(0 if size == 1 else prod(sizes[k + 1 :]) for k, size in enumerate(sizes))


@lru_cache(maxsize=4096)
def _planned(
    pattern: Pattern,
    affine: Affine,
    shape: tuple[int, ...],
    strides: Strides,
    grad_strides: Strides | None,
    mask: tuple[int, ...] | None,
) -> _Planned | str:
    """The plan for a shape, its strides and a mask's shape, or why there is none."""
    dense = dense_strides(shape, strides)
    try:
        plan = make_plan(pattern, affine, shape, strides, dense, grad_strides)
    except Unplannable as reason:
        return str(reason)
    levels = (plan.batch, plan.outer, plan.group, plan.inner, plan.span, plan.count, plan.stretch)
    x, dy = plan.x or plan.dense_levels, plan.dy or plan.dense_levels
    flags = None if mask is None else _mask_strides(_flags(plan, pattern.bind(shape), mask))
    assert _cpu is not None
    return _Planned(plan, _cpu.Plan(*levels, tuple(x), tuple(dy), flags))


@lru_cache(maxsize=4096)
def _prepared(
    pattern: Pattern,
    affine: Affine,
    epilogue: Epilogue,
    centered: bool,
    eps: float,
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: Strides,
    grad_strides: Strides | None,
    mask: tuple[int, ...] | None,
) -> _Planned:
    """The plan, and the extension's kernel on it: all of a call but its tensors."""
    planned = _planned(pattern, affine, shape, strides, grad_strides, mask)
    if isinstance(planned, str):
        raise ValueError(f"the cpu kernel has no plan: {planned}")
    assert _cpu is not None
    scaling = (DTYPES[parameter_dtype], affine.offset, affine.cast == "before")
    activation = (_cpu.ACTIVATIONS[epilogue.activation], epilogue.slope)
    return _Planned(planned.plan, _cpu.Kernel(planned.native, DTYPES[dtype], centered, eps, *scaling, *activation))


def straight(
    x: Tensor,
    pattern: Pattern,
    affine: Affine,
    epilogue: Epilogue,
    centered: bool,
    eps: float,
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    grad_strides: Strides | None,
) -> Any | None:
    """The extension's kernel, where every operand of a call lies as the extension wants it; else ``None``."""
    if declines(Signature.of(x), pattern, affine) is not None:
        return None
    if isinstance(_planned(pattern, affine, x.shape, x.stride(), grad_strides, None), str):
        return None
    plan, native = _prepared(
        pattern, affine, epilogue, centered, eps, dtype, parameter_dtype, x.shape, x.stride(), grad_strides, None
    )
    lies = plan.x is not None and (grad_strides is None or plan.dy is not None)
    ordered = plan.statistic_order is None and plan.parameter_order is None
    return native if lies and ordered and torch.empty_like(x).stride() == plan.dense else None


def absorb(
    mean: Tensor, variance: Tensor, new_mean: int, m2: int, divisor: int, share: float, updates: Tensor | None
) -> bool:
    """Running averages take in what lies at two addresses; False, and nothing written, where it is not finite."""
    assert _cpu is not None
    running = (mean.data_ptr(), variance.data_ptr(), DTYPES[mean.dtype], mean.numel())
    counter = 0 if updates is None else updates.data_ptr()
    return _cpu.absorb(*running, new_mean, m2, divisor, share, counter)


def declines(signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
    """Where there is no extension, no plan, or no plain memory to read."""
    if _cpu is None:
        return "the C++ extension was not built"
    if signature.device != "cpu":
        return f"the tensor is on {signature.device}"
    if signature.strange is not None:
        return signature.strange
    if signature.dtype not in DTYPES:
        return f"{signature.dtype} is not among its dtypes"
    if 0 in signature.shape:
        return "the tensor is empty"
    planned = _planned(pattern, affine, signature.shape, signature.strides, None, signature.mask)
    return planned if isinstance(planned, str) else None


def moments(x: Tensor, pattern: Pattern, centered: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each group."""
    call = _Call(x, pattern, _NOTHING, centered, mask=mask)
    mean, m2 = call.new_statistics(), call.new_statistics()
    call.run("moments", call.x, mean, m2)
    return call.to_pattern(mean), call.to_pattern(m2)


def apply(
    x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> Tensor:
    """y = activation((x − mean) · rstd · (offset + weight) + bias + residual)."""
    call = _Call(x, pattern, finish, mask=mask)
    y = call.new_output()
    call.run("apply", call.x, y, call.to_memory(mean), call.to_memory(rstd), call.weight, call.bias, call.residual)
    return call.natural(y)


def forward(
    x: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments, then apply, while the values are in cache: y, mean, M2."""
    call = _Call(x, pattern, finish, centered, eps, mask=mask)
    y, mean, m2 = call.new_output(), call.new_statistics(), call.new_statistics()
    call.run("forward", call.x, y, mean, m2, call.weight, call.bias, call.residual)
    return call.natural(y), call.to_pattern(mean), call.to_pattern(m2)


def forward_of_sum(
    x: Tensor, addend: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, its moments, then apply, chunk by chunk: y, x + addend, mean, M2. Both lie as outputs do."""
    call = _Call(x, pattern, finish, centered, eps)
    y, total, mean, m2 = call.new_output(), call.new_output(), call.new_statistics(), call.new_statistics()
    added = {"addend": call.beside(addend), "total": total}
    call.run("forward", call.x, y, mean, m2, call.weight, call.bias, call.residual, **added)
    return call.natural(y), call.natural(total), call.to_pattern(mean), call.to_pattern(m2)


def grad_sums(
    dy: Tensor, x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ γ·dz and Σ γ·dz·x̂ of each group; Σ dz·x̂ and Σ dz of each parameter."""
    call = _Call(x, pattern, finish, dy=dy, mask=mask)
    s1, s2 = call.new_statistics(), call.new_statistics()
    d_weight, d_bias = call.new_parameter(), call.new_parameter()
    statistics = (call.to_memory(mean), call.to_memory(rstd))
    call.run("grad_sums", call.dy, call.x, *statistics, *call.way_back, s1, s2, d_weight, d_bias)
    return call.to_pattern(s1), call.to_pattern(s2), call.to_affine(d_weight), call.to_affine(d_bias)


def grad_input(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    finish: Finish,
    c1: Tensor | None,
    c2: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx = rstd · (γ·dz − c1 − x̂·c2), and dz for the residual."""
    call = _Call(x, pattern, finish, dy=dy, mask=mask)
    dx, dz = call.new_output(), call.new_residual_gradient()
    statistics = (call.to_memory(mean), call.to_memory(rstd))
    sums = (None if c is None else call.to_memory(c) for c in (c1, c2))
    call.run("grad_input", call.dy, call.x, dx, *statistics, *call.way_back, *sums, dz)
    return call.natural(dx), call.residual_gradient(dy, dz)


def backward(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    centered: bool,
    eps: float,
    mean: Tensor,
    m2: Tensor,
    finish: Finish,
    mask: Tensor | None = None,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The sums, then the input's gradient, while the values are in cache: dx + carried, Σ dz·x̂, Σ dz, dz."""
    call = _Call(x, pattern, finish, centered, eps, dy, mask)
    dx, dz = call.new_output(), call.new_residual_gradient()
    d_weight, d_bias = call.new_parameter(), call.new_parameter()
    statistics = (call.to_memory(mean), call.to_memory(m2))
    call.run(
        "backward", call.dy, call.x, dx, *statistics, *call.way_back, d_weight, d_bias, dz, carried=call.beside(carried)
    )
    return call.natural(dx), call.to_affine(d_weight), call.to_affine(d_bias), call.residual_gradient(dy, dz)


class _Call(Operands):
    """One call: the extension's kernel on a plan, and the operands."""

    def __init__(
        self,
        x: Tensor,
        pattern: Pattern,
        finish: Finish,
        centered: bool = True,
        eps: float = 0.0,
        dy: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        dy = None if dy is None else dy.resolve_neg()
        parameters = [p for p in (finish.weight, finish.bias) if p is not None]
        dtype = reduce(torch.promote_types, (p.dtype for p in parameters)) if parameters else x.dtype
        plan, self.native = _prepared(
            *(pattern, finish.affine, finish.epilogue, centered, eps, x.dtype, dtype),
            *(x.shape, x.stride(), None if dy is None else dy.stride()),
            None if mask is None else mask.shape,
        )
        super().__init__(plan, x, finish, dy, mask)
        self.flags = None if mask is None else self._laid(mask, pattern.bind(x.shape))
        self.weight, self.bias = self.parameter(finish.weight, dtype), self.parameter(finish.bias, dtype)

    @property
    def way_back(self) -> tuple[Tensor | None, ...]:
        """What the backward verbs need of the epilogue's way from x̂ to y, as the extension orders it."""
        if self.finish.epilogue.activation == "identity":
            return self.weight, None, None, None
        if self.output is None:
            return self.weight, self.bias, self.residual, None
        return self.weight, None, None, self.output

    def run(self, verb: str, *operands: Tensor | None, **others: Tensor | None) -> None:
        """Call a verb of the extension with the operands' addresses."""
        places = [0 if o is None else o.data_ptr() for o in (*operands, self.flags)]
        getattr(self.native, verb)(*places, **{name: 0 if o is None else o.data_ptr() for name, o in others.items()})

    def _laid(self, mask: Tensor, binding: Binding) -> Tensor:
        """The mask as the extension reads it: in memory's order, dense in the levels in which it varies."""
        flags = _flags(self.plan, binding, mask.shape)
        order = [i for level in self.plan.factors for i in level]
        single = [i for i in range(len(binding.shape)) if i not in order]
        split = masks.split(mask, binding).permute(*single, *order)
        return split.expand([1] * len(single) + [n for level in flags for n in level]).contiguous()

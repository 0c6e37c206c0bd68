"""The four verbs: operators of a compiled graph, and bare calls of the chosen kernel otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish
from evenorm.operator.settings import SCHEMA, Settings

__all__ = ["apply", "grad_input", "grad_sums", "moments"]

Maybe = Tensor | None


def moments(x: Tensor, mask: Maybe, settings: Settings) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each group."""
    called = torch.ops.evenorm.moments if torch.compiler.is_compiling() else _moments
    return called(x, mask, *settings)


def apply(
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    mask: Maybe,
    mean: Tensor,
    rstd: Tensor,
    settings: Settings,
) -> Tensor:
    """y of given statistics."""
    called = torch.ops.evenorm.apply if torch.compiler.is_compiling() else _apply
    return called(x, weight, bias, residual, mask, mean, rstd, *settings)


def grad_sums(
    dy: Tensor,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    output: Maybe,
    mask: Maybe,
    mean: Tensor,
    rstd: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums of the gradient: two of each group, two of each parameter."""
    called = torch.ops.evenorm.grad_sums if torch.compiler.is_compiling() else _grad_sums
    return called(dy, x, weight, bias, residual, output, mask, mean, rstd, *settings)


def grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    output: Maybe,
    mask: Maybe,
    mean: Tensor,
    rstd: Tensor,
    c1: Maybe,
    c2: Maybe,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """dx, and the residual's gradient, which is empty where there is no residual."""
    called = torch.ops.evenorm.grad_input if torch.compiler.is_compiling() else _grad_input
    return called(dy, x, weight, bias, residual, output, mask, mean, rstd, c1, c2, *settings)


def _moments(x: Tensor, mask: Maybe, *values: Any) -> tuple[Tensor, Tensor]:
    settings = Settings(*values)
    pattern, affine, _ = settings.parsed()
    return kernels.choose(x, pattern, affine, settings.kernel, mask).moments(x, pattern, settings.centered, mask)


def _apply(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Tensor, rstd: Tensor, *values: Any
) -> Tensor:
    settings = Settings(*values)
    pattern, affine, epilogue = settings.parsed()
    kernel = kernels.choose(x, pattern, affine, settings.kernel, mask)
    return kernel.apply(x, pattern, mean, rstd, Finish(affine, epilogue, weight, bias, residual), mask)


def _grad_sums(
    dy: Tensor,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    output: Maybe,
    mask: Maybe,
    mean: Tensor,
    rstd: Tensor,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(*values)
    pattern, affine, epilogue = settings.parsed()
    finish = Finish(affine, epilogue, weight, bias, residual, output)
    kernel = kernels.choose(x, pattern, affine, settings.kernel, mask)
    return kernel.grad_sums(dy, x, pattern, mean, rstd, finish, mask)


def _grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    output: Maybe,
    mask: Maybe,
    mean: Tensor,
    rstd: Tensor,
    c1: Maybe,
    c2: Maybe,
    *values: Any,
) -> tuple[Tensor, Tensor]:
    settings = Settings(*values)
    pattern, affine, epilogue = settings.parsed()
    finish = Finish(affine, epilogue, weight, bias, residual, output)
    kernel = kernels.choose(x, pattern, affine, settings.kernel, mask)
    dx, d_residual = kernel.grad_input(dy, x, pattern, mean, rstd, finish, c1, c2, mask)
    return dx, x.new_empty(0) if d_residual is None else d_residual


def _fake_moments(x: Tensor, mask: Maybe, *values: Any) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(Settings(*values).parsed()[0].bind(x.shape).statistics_shape, dtype=torch.float64)
    return mean, torch.empty_like(mean)


def _fake_apply(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_grad_sums(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, *values = rest[5], *rest[7:]
    pattern, affine, _ = Settings(*values).parsed()
    parameter = x.new_empty(pattern.bind(x.shape).sizes(affine.axes), dtype=torch.float64)
    return torch.empty_like(mean), torch.empty_like(mean), parameter, torch.empty_like(parameter)


def _fake_grad_input(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    has_residual = rest[2] is not None or rest[3] is not None
    return torch.empty_like(x), torch.empty_like(x) if has_residual else x.new_empty(0)


_OPERANDS = "Tensor? weight, Tensor? bias, Tensor? residual"
_STATISTICS = "Tensor? mask, Tensor mean, Tensor rstd"
_library = torch.library.Library("evenorm", "FRAGMENT")
for _name, _arguments, _results, _function, _fake in (
    ("moments", "Tensor x, Tensor? mask", "(Tensor, Tensor)", _moments, _fake_moments),
    ("apply", f"Tensor x, {_OPERANDS}, {_STATISTICS}", "Tensor", _apply, _fake_apply),
    (
        "grad_sums",
        f"Tensor dy, Tensor x, {_OPERANDS}, Tensor? output, {_STATISTICS}",
        "(Tensor, Tensor, Tensor, Tensor)",
        _grad_sums,
        _fake_grad_sums,
    ),
    (
        "grad_input",
        f"Tensor dy, Tensor x, {_OPERANDS}, Tensor? output, {_STATISTICS}, Tensor? c1, Tensor? c2",
        "(Tensor, Tensor)",
        _grad_input,
        _fake_grad_input,
    ),
):
    _library.define(f"{_name}({_arguments}, {SCHEMA}) -> {_results}")
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"evenorm::{_name}", _fake, lib=_library)

"""What a case should compute: the float64 reference, part by part, and the bound of each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds import K, Magnitudes, affine_bound, epsilon, forward_bound, input_bound, rounding
from cases import Case
from evenorm import Affine, Pattern
from evenorm.kernels import reference
from evenorm.layers.layer import Layer

__all__ = ["Bounded", "Expected", "expect"]

Array = NDArray[np.float64]


class Bounded(NamedTuple):
    """Expected values, and how far off each may be."""

    values: Array
    bound: Array


@dataclass
class Expected:
    """Every number that a training step of a layer leaves behind."""

    y: Bounded
    x: Bounded
    weight: Bounded | None
    bias: Bounded | None
    history: tuple[Bounded, Bounded] | None


@dataclass
class _Part:
    """Samples that are normalized together: all of them, or one chunk."""

    x: Array
    dy: Array
    pattern: Pattern
    weight: Array | None
    bias: Array | None
    given: tuple[Array, Array] | None


def expect(case: Case, layer: Layer, x: Tensor, dy: Tensor, options: dict[str, Tensor]) -> Expected:
    """The numbers of one call and its backward, in the layer's mode, before its history moves."""
    weight = options.get("scale", layer.weight)
    bias = options.get("shift", layer.bias)
    # None is torch's choice: the epsilon of what it computes in, float32's for half precision.
    eps = epsilon(x.dtype) if layer.eps is None else layer.eps
    affine = Affine(case.given or case.affine, offset=case.offset)
    parts = _parts(case, layer, x, dy, weight, bias)
    found = [_expect_part(case, part, affine, eps, x.dtype, weight, bias) for part in parts]
    per_sample = "n" in case.given.split()
    return Expected(
        _joined([f.y for f in found]),
        _joined([f.x for f in found]),
        _together([f.weight for f in found], per_sample),
        _together([f.bias for f in found], per_sample),
        _history(case, layer, parts),
    )


def _parts(case: Case, layer: Layer, x: Tensor, dy: Tensor, weight: Tensor | None, bias: Tensor | None) -> list[_Part]:
    given = None
    pattern = case.pattern
    if case.normalizes_by_history(layer):
        history = layer.history
        assert history is not None
        given = (array(history.mean), array(history.variance))
        pattern = case.remembered
    step = case.chunk if case.chunk and given is None else max(x.shape[0], 1)
    starts = range(0, x.shape[0], step) if case.chunk else (0,)

    def of(tensor: Tensor | None, start: int) -> Array | None:
        if tensor is None:
            return None
        mine = case.chunk and "n" in case.given.split()
        return array(tensor[start : start + step] if mine else tensor)

    cut = slice(None) if not case.chunk else None
    return [
        _Part(
            array(x[cut or slice(start, start + step)]),
            array(dy[cut or slice(start, start + step)]),
            Pattern.parse(pattern),
            of(weight, start),
            of(bias, start),
            given,
        )
        for start in starts
    ]


def _expect_part(
    case: Case,
    part: _Part,
    affine: Affine,
    eps: float,
    dtype: torch.dtype,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Expected:
    settings: dict[str, Any] = {"affine": affine, "eps": eps, "centered": case.centered, "given": part.given}
    y = reference.forward(part.x, part.pattern, part.weight, part.bias, **settings)
    d = reference.backward(part.dy, part.x, part.pattern, part.weight, part.bias, **settings)
    at = _magnitudes(part, affine, eps, case.centered)
    terms = part.dy * (1 + np.abs(at.x_hat)) * at.condition
    return Expected(
        Bounded(y, forward_bound(y, at, dtype, case.cast)),
        Bounded(d.x, input_bound(d.x, at, dtype)),
        _parameter(d.weight, weight, terms, part.pattern, affine, at.values, dtype),
        _parameter(d.bias, bias, part.dy, part.pattern, affine, at.values, dtype),
        None,
    )


def _magnitudes(part: _Part, affine: Affine, eps: float, centered: bool) -> Magnitudes:
    table = reference.Table(part.pattern, part.x.shape)
    if part.given is None:
        mean, m2 = reference.moments(part.x, part.pattern, centered)
        variance = m2 / max(table.binding.count, 1)
    else:
        mean, variance = part.given
    column = (table.rows, 1)
    rstd = 1 / np.sqrt(variance.reshape(column) + eps)
    x_hat = (table.lay(part.x) - mean.reshape(column)) * rstd
    weight = part.weight
    gamma = np.ones(1) if weight is None else affine.offset + table.spread(weight, affine)
    scaled = table.lay(part.dy) * gamma
    terms = [np.abs(scaled)]
    if part.given is None:
        terms.append(np.abs(x_hat * (scaled * x_hat).mean(axis=1, keepdims=True)))
        terms.append(np.abs(scaled.mean(axis=1, keepdims=True)))
    largest = np.max([t.max(axis=1, keepdims=True, initial=0) for t in terms], axis=0)

    def lift(values: Array) -> Array:
        return table.lift(np.broadcast_to(values, x_hat.shape))

    return Magnitudes(
        table.binding.count,
        lift(1 + np.abs(mean.reshape(column)) * rstd),
        lift(np.abs(gamma)),
        lift(x_hat),
        lift(rstd),
        lift(largest),
    )


def _parameter(
    gradient: Array | None,
    parameter: Tensor | None,
    terms: Array,
    pattern: Pattern,
    affine: Affine,
    values: int,
    dtype: torch.dtype,
) -> Bounded | None:
    if gradient is None or parameter is None:
        return None
    binding = pattern.bind(terms.shape)
    axes = [binding.names.index(name) for name in affine.axes]
    split = np.moveaxis(terms.reshape(binding.shape), axes, range(len(axes)))
    rows = split.reshape(gradient.size, -1)
    bound = affine_bound(gradient.reshape(-1), rows, values, dtype, parameter.dtype)
    return Bounded(gradient, bound.reshape(gradient.shape))


def _joined(parts: list[Bounded]) -> Bounded:
    return Bounded(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _together(parts: list[Bounded | None], per_sample: bool) -> Bounded | None:
    present = [part for part in parts if part is not None]
    if not present or per_sample:
        return _joined(present) if present else None
    return Bounded(*(np.sum(column, axis=0) for column in zip(*present, strict=True)))


def _history(case: Case, layer: Layer, parts: list[_Part]) -> tuple[Bounded, Bounded] | None:
    """What the history should be after this call: each chunk counts by its number of values."""
    history = layer.history
    if history is None or not layer.training:
        return None
    if case.frozen:
        return _exact(array(history.mean)), _exact(array(history.variance))
    found = [_averaged(part) for part in parts]
    shares = np.array([count for count, _, _ in found])
    assert history.updates is not None
    momentum = case.momentum or 1 / (history.updates.item() + 1)
    results = []
    for k, old in ((1, history.mean), (2, history.variance)):
        new = np.average([f[k] for f in found], axis=0, weights=shares)
        values = (1 - momentum) * array(old) + momentum * new
        scale = np.abs(new) + np.sqrt(np.abs(found[0][2]))
        bound = rounding(values, old.dtype) + K * epsilon(old.dtype) * scale
        results.append(Bounded(values, bound))
    return results[0], results[1]


def _averaged(part: _Part) -> tuple[int, Array, Array]:
    """Number of values; mean and unbiased variance, averaged over all kept axes but c."""
    binding = part.pattern.bind(part.x.shape)
    mean, m2 = reference.moments(part.x, part.pattern)
    others = tuple(k for k, i in enumerate(binding.kept) if binding.names[i] != "c")
    unbiased = m2 / max(binding.count - 1, 1)
    return binding.count, mean.mean(axis=others), unbiased.mean(axis=others)


def _exact(values: Array) -> Bounded:
    return Bounded(values, np.zeros_like(values))


def array(tensor: Tensor) -> Array:
    """In float64 NumPy."""
    return tensor.detach().double().numpy()

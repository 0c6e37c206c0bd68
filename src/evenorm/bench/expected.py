"""What a case should compute, slice by slice: the float64 reference, and how far off each number may be.

The error of a float32 accumulation is K · eps(float32) · √count · (1 + |mean|/σ), scaled by the terms that it adds.
Ours may round once to the output's dtype beyond that; peers may round wherever they store a value on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evenorm.bench.case import Case, Data
from evenorm.kernels import reference
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern

__all__ = ["Bounded", "Slice", "array", "avoid_kinks", "rows", "slices", "totals"]

Array = NDArray[np.float64]
Where = tuple[slice, ...]

# Roundings of an element in the accumulation dtype, as many again in sums and rstd.
_K = 8.0 * torch.finfo(torch.float32).eps
# Values of a slice: small enough that float64 copies of it stay in cache.
_SLICE = 1 << 18
# Roundings that a peer may make on the way: inputs, normalized, scaled, added.
_PEER_ROUNDINGS = 4.0
# Slopes jump where activations have a kink, at |z| of these.
_KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (3.0,)}


class Bounded(NamedTuple):
    """Expected values, and how far off ours and a peer's may be."""

    values: Array
    ours: Array
    peers: Array


class _Sum(NamedTuple):
    """A part of a parameter's gradient, the sum of its terms' squares, the square of its float32 error."""

    values: Array
    squares: Array
    error: Array


@dataclass
class Slice:
    """What one slice should give, and what its activation is given, with the scale of the terms of that."""

    where: Where
    z: Array
    scale: Array
    elements: dict[str, Bounded]
    sums: dict[str, _Sum]


def slices(case: Case, data: Data) -> Iterator[Slice]:
    """The case cut along an axis across which nothing is shared but parameters."""
    layer = case.ours()
    assert isinstance(layer, Layer)
    x, axis = rows(case, data.x.detach()), case.sliced_axis
    step = max(1, ceil(_SLICE * x.shape[axis] / x.numel()))
    for start in range(0, x.shape[axis], step):
        yield _slice(case, data, layer, (slice(None),) * axis + (slice(start, start + step),))


def totals(case: Case, parts: list[dict[str, _Sum]]) -> dict[str, Bounded]:
    """The parameters' gradients of the whole from those of the slices."""
    found = {}
    epsilon, own = torch.finfo(case.torch_dtype).eps, torch.finfo(case.parameter_dtype).eps
    for name in parts[0]:
        columns = zip(*(part[name] for part in parts), strict=True)
        values, squares, error = (
            np.concatenate(column) if case.sliced_axis else np.sum(column, axis=0) for column in columns
        )
        ours = own / 2 * np.abs(values) + np.sqrt(error)
        # The roundings of a sum's terms add up like a random walk; 4 σ.
        walk = 4 * _PEER_ROUNDINGS * epsilon / 2 * np.sqrt(squares)
        found[name] = Bounded(values, ours, ours + walk)
    return found


def avoid_kinks(case: Case, data: Data) -> None:
    """Set the cotangent to 0 where a rounding decides on which side of a kink a value lies."""
    for part in slices(case, data) if case.activation in _KINKS else ():
        near = np.zeros(part.z.shape, bool)
        margin = 1e-3 + 2 * torch.finfo(case.torch_dtype).eps * part.scale
        for kink in _KINKS[case.activation or ""]:
            near |= np.abs(np.abs(part.z) - kink) < margin
        rows(case, data.dy)[part.where][torch.from_numpy(near)] = 0


def rows(case: Case, tensor: Any) -> Any:
    """A layer of the last axis sees a table of rows, which can be cut anywhere."""
    return tensor.reshape(-1, case.shape[-1]) if case.layer in ("LayerNorm", "RMSNorm") else tensor


def array(values: Any) -> Array:
    """In float64 NumPy."""
    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)


def _slice(case: Case, data: Data, layer: Layer, where: Where) -> Slice:
    recipe, eps = layer.recipe, float(layer.eps)
    channels = where[-1] if case.sliced_axis else slice(None)
    weight, bias = (array(p[channels]) for p in (data.weight, data.bias))
    shift = None if layer.bias is None else bias
    pattern, given = recipe.pattern, None
    if case.uses_history:
        pattern = Pattern.parse(recipe.remembered)
        given = (array(data.mean[channels]), array(data.variance[channels]))
    settings: Any = {"affine": recipe.affine, "eps": eps, "centered": recipe.centered, "given": given}

    def cut(tensor: Tensor | None) -> Any:
        return None if tensor is None else rows(case, tensor.detach())[where]

    x, dy, residual, d_total = (cut(t) for t in (data.x, data.dy, data.residual, data.d_total))
    before, after = case.residual == "before", case.residual == "after"
    # The sum is an output, so it is rounded before it is normalized.
    x = array(x + residual if before else x)
    z = reference.forward(x, pattern, weight, shift, **settings)
    z = z + array(residual) if after else z
    y, dz = _activated(case, z, array(dy))
    d = reference.backward(dz, x, pattern, weight, shift, **settings)

    table = reference.Table(pattern, x.shape)
    mean, variance = given or reference.moments(x, pattern, recipe.centered)
    variance = variance if given else variance / table.binding.count
    column = (table.rows, 1)
    rstd = 1 / np.sqrt(variance.reshape(column) + eps)
    condition = np.broadcast_to(1 + np.abs(mean.reshape(column)) * rstd, (table.rows, table.binding.count))
    x_hat = (table.lay(x) - mean.reshape(column)) * rstd
    gamma = np.abs(table.spread(weight, recipe.affine))
    error = _K * np.sqrt(table.binding.count) * condition
    # An activation's slope is at most 1.5 and depends on z with a slope of at most 1.
    slope = 1.5 if case.activation else 1.0
    # Peers may store the mean rounded too, which is |mean|/σ in units of x̂.
    terms = gamma * (np.abs(x_hat) + condition)
    terms = terms if shift is None else terms + np.abs(table.spread(shift, recipe.affine))
    terms = terms + np.abs(table.lay(array(residual))) if after else terms
    flow = np.abs(table.lay(array(dy))) * (1 + (terms if case.activation else 0))
    scaled = gamma * flow
    largest = (scaled + scaled.max(axis=1, keepdims=True) * (given is None)) * rstd

    def bounded(values: Array, scale: Array, error: Array, stored: Array | float = 0.0) -> Bounded:
        """``stored`` is what ours, too, rounds on the way."""
        half = torch.finfo(case.torch_dtype).eps / 2
        error = table.lift(np.broadcast_to(error, x_hat.shape)) + np.finfo(np.float32).tiny
        wide = _PEER_ROUNDINGS * half * (table.lift(scale) + stored)
        return Bounded(values, half * (np.abs(values) + stored) + error, wide + error)

    output = bounded(y, slope * terms, slope * error * np.maximum(gamma, terms))
    elements = {"y": output, "y without grad": output}
    if before:
        total = array(d_total)
        dx = bounded(d.x + total, largest, error * largest, np.abs(d.x) + np.abs(total))
        elements |= {"dx": dx, "dresidual": dx, "sum": bounded(x, np.abs(table.lay(x)), np.zeros(column))}
    else:
        elements["dx"] = bounded(d.x, largest, error * largest)
    if after:
        elements["dresidual"] = bounded(dz, flow, slope * error * flow)
    sums = {}
    for name, values, factor in (("dweight", d.weight, np.abs(x_hat) + 1), ("dbias", d.bias, 1.0)):
        if values is not None:
            addends = flow * factor
            count = max(table.binding.count, addends.size // values.size)
            squares = table.gather(addends * addends, recipe.affine, values)
            off = _K * np.max(addends * condition)
            sums[name] = _Sum(values, squares, np.full_like(values, off * off * count))
    return Slice(where, z, table.lift(terms), elements, sums)


def _activated(case: Case, z: Array, dy: Array) -> tuple[Array, Array]:
    """act(z), and dy · act'(z) by torch's autograd in float64."""
    if case.activation is None:
        return z, dy
    leaf = torch.from_numpy(z).requires_grad_()
    y = getattr(functional, case.activation)(leaf)
    (dz,) = torch.autograd.grad(y, leaf, torch.from_numpy(dy))
    return y.detach().numpy(), dz.numpy()

"""The gate: no speed without a result that agrees with the float64 reference.

Each number may be off by roundings to the output's dtype plus K · eps(float32) · √count · (1 + |mean|/σ),
scaled by its terms. Ours rounds once. Peers may round where they store values between operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evenorm.bench.case import Case, Data
from evenorm.bench.peers import OURS, Outputs
from evenorm.kernels import reference
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern

__all__ = ["Verdict", "avoid_kinks", "check"]

Array = NDArray[np.float64]

# Roundings of an element in the accumulation dtype, as many again in sums and rstd.
_K = 8.0
# Values of a slice: small enough that float64 copies of it stay in cache.
_SLICE = 1 << 18
# Roundings that a peer may make on the way: inputs, normalized, scaled, added.
_PEER_ROUNDINGS = 4.0
# Slopes jump where activations have a kink, at |z| of these.
_KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (3.0,)}


@dataclass
class Verdict:
    """How far off each output is: the largest error, its share of the bound, the largest value."""

    errors: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The worst error of an output, in units of the output's largest value."""
        return max((e / (self.largest[name] or 1.0) for name, e in self.errors.items()), default=0.0)

    @property
    def share(self) -> float:
        """The worst share of a bound; 1 is the limit."""
        return max(self.shares.values(), default=0.0)

    @property
    def fault(self) -> str | None:
        """What is wrong, if anything."""
        if not self.shares or self.share <= 1:
            return None
        name = max(self.shares, key=self.shares.__getitem__)
        return f"{name} is off by {self.errors[name]:.2g}, {self.shares[name]:.1f} times its bound"

    def compare(self, name: str, found: Any, values: Array, bound: Array) -> None:
        """Take one output, or a part of it, into the verdict. What is not finite is infinitely wrong."""
        difference = np.abs(_array(found).reshape(values.shape) - values)
        difference[np.isnan(difference)] = np.inf
        self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(values).max(initial=0)))
        self.errors[name] = max(self.errors.get(name, 0.0), float(difference.max(initial=0)))
        self.shares[name] = max(self.shares.get(name, 0.0), float((difference / bound).max(initial=0)))


def check(case: Case, data: Data, outputs: Mapping[str, Outputs]) -> dict[str, Verdict]:
    """Compare every variant's outputs with the reference, slice by slice."""
    verdicts = {name: Verdict() for name in outputs}
    outputs = {name: {output: _dense(t) for output, t in found.items()} for name, found in outputs.items()}
    epsilon = torch.finfo(case.torch_dtype).eps
    summed: dict[str, list[Array]] = {}
    for where, part in _parts(case, data):
        for name, found in outputs.items():
            roundings = 1.0 if name == OURS else _PEER_ROUNDINGS
            for output, (values, terms, error) in part.elements.items():
                given = found.get(output)
                if given is not None:
                    scale = np.abs(values) if name == OURS else terms
                    bound = roundings * epsilon / 2 * scale + error + np.finfo(np.float32).tiny
                    verdicts[name].compare(output, _rows(case, given)[where], values, bound)
        for output, sums in part.sums.items():
            summed.setdefault(output, []).append(sums)
    for output, parts in summed.items():
        joined = np.concatenate(parts, axis=1) if case.sliced_axis else np.sum(parts, axis=0)
        values, squares, error = joined[0], joined[1], np.sqrt(joined[2])
        for name, found in outputs.items():
            if found.get(output) is not None:
                # The roundings of a sum's terms add up like a random walk; 4 σ.
                walk = 0.0 if name == OURS else 4 * _PEER_ROUNDINGS * epsilon / 2 * np.sqrt(squares)
                own = torch.finfo(case.parameter_dtype).eps / 2 * np.abs(values)
                verdicts[name].compare(output, found[output], values, own + walk + error)
    return verdicts


def avoid_kinks(case: Case, data: Data) -> None:
    """Set the cotangent to 0 where a rounding decides on which side of a kink a value lies."""
    for where, part in _parts(case, data) if case.activation in _KINKS else ():
        near = np.zeros(part.z.shape, bool)
        for kink in _KINKS[case.activation or ""]:
            margin = 1e-3 + 4 * torch.finfo(case.torch_dtype).eps * kink
            near |= np.abs(np.abs(part.z) - kink) < margin
        _rows(case, data.dy)[where][torch.from_numpy(near)] = 0


@dataclass
class _Part:
    """The reference on a slice: elements with the scale of their terms and an error, sums with both too."""

    z: Array
    elements: dict[str, tuple[Array, Array, Array]]
    sums: dict[str, Array]


def _parts(case: Case, data: Data) -> Iterator[tuple[tuple[slice, ...], _Part]]:
    layer = case.ours()
    assert isinstance(layer, Layer)
    x, axis = _rows(case, data.x.detach()), case.sliced_axis
    step = max(1, ceil(_SLICE * x.shape[axis] / x.numel()))
    for start in range(0, x.shape[axis], step):
        where = (slice(None),) * axis + (slice(start, start + step),)
        yield where, _part(case, data, layer, where)


def _part(case: Case, data: Data, layer: Layer, where: tuple[slice, ...]) -> _Part:
    recipe, eps = layer.recipe, float(layer.eps)
    channels = where[-1] if case.sliced_axis else slice(None)
    weight, bias = (_array(p[channels]) for p in (data.weight, data.bias))
    x, dy = (_array(_rows(case, t)[where]) for t in (data.x.detach(), data.dy))
    pattern, given = recipe.pattern, None
    if case.uses_history:
        pattern = Pattern.parse(recipe.remembered)
        given = (_array(data.mean[channels]), _array(data.variance[channels]))
    shift = None if layer.bias is None else bias
    settings: Any = {"affine": recipe.affine, "eps": eps, "centered": recipe.centered, "given": given}
    z = reference.forward(x, pattern, weight, shift, **settings)
    residual = None if data.residual is None else _array(_rows(case, data.residual.detach())[where])
    y, dz = _activated(case, z if residual is None else z + residual, dy)
    d = reference.backward(dz, x, pattern, weight, shift, **settings)

    table = reference.Table(pattern, x.shape)
    mean, variance = given or reference.moments(x, pattern, recipe.centered)
    variance = variance if given else variance / table.binding.count
    column = (table.rows, 1)
    rstd = 1 / np.sqrt(variance.reshape(column) + eps)
    condition = np.broadcast_to(1 + np.abs(mean.reshape(column)) * rstd, (table.rows, table.binding.count))
    x_hat = (table.lay(x) - mean.reshape(column)) * rstd
    gamma = table.spread(weight, recipe.affine)
    error = _K * torch.finfo(torch.float32).eps * np.sqrt(table.binding.count) * condition
    # An activation's slope is at most 1.5 and depends on z with a slope of at most 1.
    slope = 1.5 if case.activation else 1.0
    terms = np.abs(gamma * x_hat) + (0 if shift is None else np.abs(table.spread(shift, recipe.affine)))
    if residual is not None:
        terms = terms + np.abs(table.lay(residual))
    flow = np.abs(table.lay(dy)) * (1 + (terms if case.activation else 0))
    scaled = np.abs(gamma) * flow
    largest = scaled + scaled.max(axis=1, keepdims=True) * (given is None)
    elements = {
        "y": (y, table.lift(slope * terms), table.lift(slope * error * np.maximum(np.abs(gamma), terms))),
        "dx": (d.x, table.lift(largest * rstd), table.lift(error * largest * rstd)),
    }
    elements["y without grad"] = elements["y"]
    if residual is not None:
        elements["dresidual"] = (dz, table.lift(flow), table.lift(slope * error * flow))
    sums = {
        name: _summed(table, recipe.affine, value, flow * factor, condition, weight)
        for name, value, factor in (("dweight", d.weight, np.abs(x_hat) + 1), ("dbias", d.bias, 1.0))
        if value is not None
    }
    return _Part(z if residual is None else z + residual, elements, sums)


def _summed(table: reference.Table, affine: Any, value: Array, terms: Array, condition: Array, like: Array) -> Array:
    """A parameter's gradient, the sum of its terms' squares, and the square of its error in float32."""
    count = max(table.binding.count, terms.size // like.size)
    error = _K * torch.finfo(torch.float32).eps * np.max(terms * condition)
    squares = table.gather(terms * terms, affine, like)
    return np.stack([value, squares, np.full_like(value, error * error * count)])


def _activated(case: Case, z: Array, dy: Array) -> tuple[Array, Array]:
    """act(z), and dy · act'(z) by torch's autograd in float64."""
    if case.activation is None:
        return z, dy
    leaf = torch.from_numpy(z).requires_grad_()
    y = getattr(functional, case.activation)(leaf)
    (dz,) = torch.autograd.grad(y, leaf, torch.from_numpy(dy))
    return y.detach().numpy(), dz.numpy()


def _rows(case: Case, tensor: Any) -> Any:
    """A layer of the last axis sees a table of rows, which can be cut anywhere."""
    return tensor.reshape(-1, case.shape[-1]) if case.layer in ("LayerNorm", "RMSNorm") else tensor


def _dense(values: Any) -> Any:
    """Slices of channels are cut fast where the channels do not lie innermost."""
    return values.detach().contiguous() if isinstance(values, Tensor) else np.ascontiguousarray(values)


def _array(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)

"""What a case should compute, slice by slice: the float64 reference, and how far off each number may be.

Ours may round once to the output's dtype, beyond the error of a float32 accumulation,
K · eps(float32) · √count · (1 + |mean|/σ), scaled by its largest terms. Peers may round wherever they store a value on
the way, and may add up naively.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evenorm.bench.activation import ACTIVATIONS
from evenorm.bench.case import Case, Data
from evenorm.kernels import reference
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern

__all__ = ["Bounded", "Reference", "Slice", "Where", "array", "avoid_kinks"]

Array = NDArray[np.float64]
Where = tuple[slice, ...]

_EPSILON = torch.finfo(torch.float32).eps
# Roundings of an element in the accumulation dtype, as many again in sums and rstd.
_K = 8.0
# Values of a slice: small enough that float64 copies of it stay in cache.
_SLICE = 1 << 16
# Roundings that a peer may make on the way: inputs, normalized, scaled, added.
_PEER_ROUNDINGS = 4.0
# How often a variant is called until its outputs are there.
_CALLS = 2
# Slopes jump where activations have a kink, at |z| of these.
_KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (3.0,)}


class Bounded(NamedTuple):
    """Expected values, and how far off ours and a peer's may be."""

    values: Array
    ours: Array
    peers: Array


class _Sum(NamedTuple):
    """A part of a value for each channel: the value, the squares and the number of its terms, its error squared."""

    values: Array
    squares: Array
    terms: Array
    error: Array


@dataclass
class Slice:
    """What one slice should give, and z, which its activation is given, with the scale of z's terms."""

    z: Array
    scale: Array
    elements: dict[str, Bounded]
    sums: dict[str, _Sum]


class Reference:
    """The reference of one case, in slices along an axis across which nothing but parameters is shared."""

    def __init__(self, case: Case, data: Data) -> None:
        layer = case.ours()
        assert isinstance(layer, Layer)
        self.case, self.data, self.layer = case, data, layer
        self.x, self.dy, self.residual, self.d_total = (
            self.rows(t) for t in (data.x, data.dy, data.residual, data.d_total)
        )

    def wheres(self) -> Iterator[Where]:
        """The slices' places."""
        shape, axis = self.x.shape, self.case.sliced_axis
        step = max(1, ceil(_SLICE * shape[axis] / prod(shape)))
        for start in range(0, shape[axis], step):
            yield (slice(None),) * axis + (slice(start, start + step),)

    def rows(self, values: Any) -> Any:
        """A tensor laid so that slices are cut fast; a layer of the last axis sees a table of rows."""
        if values is None:
            return None
        dense = values.detach().contiguous() if isinstance(values, Tensor) else np.ascontiguousarray(values)
        return dense.reshape(-1, self.case.shape[-1]) if self.case.layer in ("LayerNorm", "RMSNorm") else dense

    def slice(self, where: Where) -> Slice:
        """One slice."""
        case, data, recipe = self.case, self.data, self.layer.recipe
        channels = where[-1] if case.sliced_axis else slice(None)
        weight, bias = (array(p[channels]) for p in (data.weight, data.bias))
        shift = None if self.layer.bias is None else bias
        pattern, given = recipe.pattern, None
        if case.uses_history:
            pattern = Pattern.parse(recipe.remembered)
            given = (array(data.mean[channels]), array(data.variance[channels]))
        settings: Any = {
            "affine": recipe.affine,
            "eps": float(self.layer.eps),
            "centered": recipe.centered,
            "given": given,
            "mask": self._mask(where),
        }
        cuts: list[Any] = [None if t is None else t[where] for t in (self.x, self.dy, self.residual, self.d_total)]
        x, dy, residual, d_total = cuts
        # The sum is an output, so it is rounded before it is normalized.
        x, dy = array(x + residual if case.residual == "before" else x), array(dy)
        z = reference.forward(x, pattern, weight, shift, **settings)
        z = z + array(residual) if case.residual == "after" else z
        y, dz = _activated(case, z, dy)
        d = reference.backward(dz, x, pattern, weight, shift, **settings)

        table = reference.Table(pattern, x.shape)
        count = table.binding.count
        mean, variance = given or _moments(table.lay(x), recipe.centered)
        rstd = 1 / np.sqrt(variance + float(self.layer.eps))
        # The scales below are the largest of the slice, whose values are all of one distribution.
        condition = float(np.max(1 + np.abs(mean) * rstd))
        error = _K * _EPSILON * np.sqrt(count) * condition
        gamma = float(np.max(np.abs(weight)))
        # Of z's terms but z itself. Peers may store the mean rounded too, |mean|/σ in units of x̂.
        beside = gamma * condition + 2 * (0.0 if shift is None else float(np.max(np.abs(shift))))
        beside += 2 * float(np.max(np.abs(array(residual)))) if case.residual == "after" else 0.0
        scale = np.abs(z) + beside
        largest = float(scale.max())
        # An activation's slope is at most 1.5 and changes with z by at most 1.
        slope, sway = (1.5, 1 + largest) if case.activation else (1.0, 1.0)
        flow = float(np.max(np.abs(dy))) * sway
        pull = 2 * gamma * flow * float(rstd.max())
        half = torch.finfo(case.torch_dtype).eps / 2

        def bounded(values: Array, others: Array | float, error: float, stored: Array | float = 0.0) -> Bounded:
            """Others are a peer's terms beside the value; stored is what ours, too, rounds on the way."""
            once = half * np.abs(values) + (error + np.finfo(np.float32).tiny)
            return Bounded(
                values, once + half * stored, once * _PEER_ROUNDINGS + _PEER_ROUNDINGS * half * (others + stored)
            )

        output = bounded(y, slope * beside if case.activation is None else slope * scale, slope * error * largest)
        elements = {"y": output, "y without grad": output}
        if case.residual == "before":
            total = array(d_total)
            dx = bounded(d.x + total, pull, error * pull, np.abs(d.x) + np.abs(total))
            elements |= {"dx": dx, "dresidual": dx, "sum": bounded(x, 0.0, 0.0)}
        else:
            elements["dx"] = bounded(d.x, pull, error * pull)
        if case.residual == "after":
            elements["dresidual"] = bounded(dz, flow, slope * error * flow)
        sums = {}
        for name, values in (("dweight", d.weight), ("dbias", d.bias)):
            if values is not None:
                # (1 + |x̂|)² is 4 on average.
                squares = 4 * sway * sway * table.gather(table.lay(dy * dy), recipe.affine, values)
                off = _K * _EPSILON * condition * flow * (5.0 if name == "dweight" else 1.0)
                n = dy.size / values.size
                sums[name] = _Sum(values, squares, np.full_like(values, n), np.full_like(values, off * off * n))
        if case.family == "BatchNorm" and data.mask is None:
            sums |= self._history(where, mean, variance, count, error)
        return Slice(z, scale, elements, sums)

    def _history(self, where: Where, mean: Array, variance: Array, count: int, error: float) -> dict[str, _Sum]:
        """Running statistics after two calls, one without and one with gradients."""
        channels, layer = where[-1], cast(Any, self.layer)
        old = {"running_mean": array(self.data.mean[channels]), "running_var": array(self.data.variance[channels])}
        new = {"running_mean": mean, "running_var": variance * count / max(count - 1, 1)}
        scales = {"running_mean": np.sqrt(variance), "running_var": 2 * variance}
        stays = 1.0 if self.case.uses_history else (1 - layer.momentum) ** _CALLS
        none = np.zeros_like(mean)
        return {
            name: _Sum(stays * old[name] + (1 - stays) * new[name], none, none, (error * scales[name]) ** 2)
            for name in old
        }

    def _mask(self, where: Where) -> Any:
        """Of lengths: the same for all channels."""
        if self.data.mask is None:
            return None
        mask = self.data.mask.numpy()[:, None]
        return mask if self.case.sliced_axis else mask[where]

    def totals(self, parts: list[dict[str, _Sum]]) -> dict[str, Bounded]:
        """The parameters' gradients and the history of the whole from those of the slices."""
        found = {}
        epsilon, own = torch.finfo(self.case.torch_dtype).eps, torch.finfo(self.case.parameter_dtype).eps
        for name in parts[0]:
            columns = zip(*(part[name] for part in parts), strict=True)
            values, squares, terms, error = (
                np.concatenate(column) if self.case.sliced_axis else np.sum(column, axis=0) for column in columns
            )
            norm = np.sqrt(squares)
            ours = own / 2 * np.abs(values) + np.sqrt(np.maximum(error, (_K * _EPSILON) ** 2 * squares))
            # Rounded terms add up like a random walk, 4 σ; so does a naive sum, whose parts grow.
            walk = 4 * _PEER_ROUNDINGS * epsilon / 2 * norm + _EPSILON * norm * np.sqrt(terms)
            found[name] = Bounded(values, ours, ours * _PEER_ROUNDINGS + walk)
        return found


def avoid_kinks(case: Case, data: Data) -> None:
    """Set the cotangent to 0 where a rounding decides on which side of a kink a value lies."""
    if case.activation not in _KINKS:
        return
    exact = Reference(case, data)
    for where in exact.wheres():
        part = exact.slice(where)
        near = np.zeros(part.z.shape, bool)
        margin = 1e-3 + 2 * torch.finfo(case.torch_dtype).eps * part.scale
        for kink in _KINKS[case.activation]:
            near |= np.abs(np.abs(part.z) - kink) < margin
        exact.dy[where][torch.from_numpy(near)] = 0
    data.dy.copy_(exact.dy.reshape(case.shape))


def array(values: Any) -> Array:
    """In float64 NumPy."""
    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)


def _moments(table: Array, centered: bool) -> tuple[Array, Array]:
    """Mean and variance of each row, for the scales alone."""
    if not centered:
        return np.zeros(len(table)), np.einsum("ij,ij->i", table, table) / table.shape[1]
    return table.mean(axis=1), table.var(axis=1)


def _activated(case: Case, z: Array, dy: Array) -> tuple[Array, Array]:
    """act(z), and dy · act'(z) by torch's autograd in float64."""
    if case.activation is None:
        return z, dy
    leaf = torch.from_numpy(z).requires_grad_()
    y = ACTIVATIONS[case.activation](leaf)
    (dz,) = torch.autograd.grad(y, leaf, torch.from_numpy(dy))
    return y.detach().numpy(), dz.numpy()

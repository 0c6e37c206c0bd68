"""The properties that every case is held to: the same functions catch the planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cases import Case
from evenorm.layers.layer import Layer
from layouts import LAYOUTS, lay
from oracle import Bounded, Expected, array, expect

__all__ = ["Step", "agrees_with_reference", "assert_step", "assert_within", "seeded_input", "step"]


class Step(NamedTuple):
    """What one call of a layer and its backward leave behind."""

    y: Tensor
    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    history: tuple[Tensor, Tensor] | None


def seeded_input(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values that are neither centered nor of unit variance, rounded to the dtype."""
    # Not the seed that cotangents are drawn with: a cotangent like the input has no gradient.
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.7).to(dtype)


def step(
    layer: Layer,
    x: Tensor,
    dy: Tensor,
    options: dict[str, Tensor],
    function: Callable[..., Tensor] | None = None,
) -> Step:
    """Forward and backward with this cotangent; of the layer compiled, where a function is given."""
    x = x.detach().requires_grad_()
    given = {name: t.detach().requires_grad_() for name, t in options.items()}
    y = (layer if function is None else function)(x, **given)
    weight, bias = given.get("scale", layer.weight), given.get("shift", layer.bias)
    inputs = [t for t in (x, weight, bias) if t is not None]
    gradients = dict(zip(map(id, inputs), torch.autograd.grad(y, inputs, dy), strict=True))
    kept = layer.history if layer.training else None
    return Step(
        y.detach(),
        gradients[id(x)],
        gradients.get(id(weight)),
        gradients.get(id(bias)),
        None if kept is None else (kept.mean, kept.variance),
    )


def assert_within(actual: Tensor | None, expected: Bounded | None, what: str) -> None:
    """Every element within its bound; the worst one is named."""
    if actual is None or expected is None:
        assert actual is None, f"{what}: expected none"
        assert expected is None, f"{what}: expected some, got none"
        return
    values = array(actual).reshape(expected.values.shape)
    error = np.abs(values - expected.values)
    # Written so that a NaN is a fault too.
    wrong = ~(error <= expected.bound)
    if wrong.any():
        at = np.unravel_index(np.nanargmax(error / expected.bound), wrong.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} are out of bounds; at {tuple(map(int, at))} "
            f"{values[at]!r} instead of {expected.values[at]!r} ± {expected.bound[at]:.2e}"
        )


def assert_step(found: Step, expected: Expected, what: str) -> None:
    """All that a step leaves behind, within bounds."""
    assert_within(found.y, expected.y, f"{what}: y")
    assert_within(found.x, expected.x, f"{what}: dx")
    assert_within(found.weight, expected.weight, f"{what}: dγ")
    assert_within(found.bias, expected.bias, f"{what}: dβ")
    for k, name in enumerate(("running mean", "running variance")):
        kept = None if found.history is None else found.history[k]
        assert_within(kept, expected.history and expected.history[k], f"{what}: {name}")


def agrees_with_reference(case: Case, kernel: str, dtype: torch.dtype, training: bool) -> None:
    """Forward, every gradient and the history are those of the float64 reference, in every layout."""
    for layout in LAYOUTS:
        for seed, shape in enumerate(case.shapes):
            layer = case.layer(dtype, kernel).train(training)
            x = lay(seeded_input(shape, dtype, seed), layout, case.pattern)
            dy = torch.randn(shape, dtype=torch.float64).to(dtype)
            options = case.options(shape, dtype)
            expected = expect(case, layer, x, dy, options)
            found = step(layer, x, dy, options)
            assert found.y.dtype == dtype
            assert_step(found, expected, f"{case} {layout} {shape}")

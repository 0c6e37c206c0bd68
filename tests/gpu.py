"""Where Triton's kernels run in the tests: on a GPU, or in Triton's interpreter on small tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case
from evenorm.kernels import triton
from evenorm.kernels.triton import call, prepared, tile
from evenorm.layers.layer import Layer
from layouts import lay
from oracle import expect
from properties import Step, assert_step, seeded_input, step

__all__ = ["DEVICE", "GPU", "agrees", "poison", "shortly", "shrink", "step_there", "there"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = [
    pytest.mark.gpu,
    # Of NumPy, with which the interpreter computes: what overflows is meant to, and is then seen to.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(
        DEVICE == "cpu" and not (triton.interpreted() and triton.installed()),
        reason="no GPU; in Triton's interpreter these run by themselves: pytest -m gpu",
    ),
]


def shortly(values: Iterable[Any], *short: str) -> list[Any]:
    """Parameters of a test of which those named here are its short form."""
    return [v if str(v) in short else pytest.param(v, marks=pytest.mark.slow) for v in values]


def there(value: Any) -> Any:
    """Tensors, alone or in a dictionary, on the device; strides stay."""
    if isinstance(value, dict):
        return {name: there(t) for name, t in value.items()}
    if value is None or value.device.type == DEVICE:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE).copy_(value)


def step_there(layer: Layer, x: Tensor, dy: Tensor, options: dict[str, Tensor]) -> Step:
    """Forward and backward on the device; what they leave behind, back from it."""
    found = step(layer.to(DEVICE), there(x), there(dy), there(options))
    history = None if found.history is None else (found.history[0].cpu(), found.history[1].cpu())
    return Step(found.y.cpu(), _back(found.x), _back(found.weight), _back(found.bias), history)


def _back(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def agrees(case: Case, dtype: torch.dtype, layout: str, training: bool, seed: int = 0, *, mixed: bool = False) -> None:
    """Output, gradients and history are those of the float64 reference.

    Args:
        seed: which of the case's shapes.
        mixed: whether parameters are float32, whatever the input is.
    """
    shape = case.shapes[seed]
    kind = torch.float32 if mixed else dtype
    layer = case.layer(kind, "triton").train(training)
    x = lay(seeded_input(shape, dtype, seed), layout, case.pattern)
    dy = torch.randn(shape, dtype=torch.float64).to(dtype)
    options = case.options(shape, kind)
    expected = expect(case, layer, x, dy, options)
    found = step_there(layer, x, dy, options)
    assert found.y.dtype == dtype
    assert_step(found, expected, f"{case} {layout} {shape}")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Tiles of a few elements, so that small tensors take every loop, in several pieces."""
    for name, size in (("LOOP", 16), ("ALONE", 40), ("FEWEST_TILES", 2), ("SHORT", 16), ("COLUMNS", 4), ("WARPS", 2)):
        patch.setattr(tile, name, size)
    for name in ("LOOP", "WHOLE", "WHOLE_BACKWARD"):
        patch.setattr(prepared, name, 16)
    patch.setattr(call, "prepared", prepared.prepared.__wrapped__)


def poison(patch: pytest.MonkeyPatch) -> None:
    """NaN in all new memory, so that what a kernel does not write is seen."""
    for name in ("empty", "empty_strided"):
        make = getattr(torch, name)

        def poisoned(*sizes: Any, make: Any = make, **options: Any) -> Tensor:
            new = make(*sizes, **options)
            return new.fill_(torch.nan) if new.is_floating_point() else new

        patch.setattr(torch, name, poisoned)

"""What a call launches: decided by its signature alone, so that the host waits for nothing and CUDA graphs hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import evenorm
from evenorm import Epilogue, kernels
from evenorm.kernels import triton
from evenorm.kernels.triton.call import Call
from evenorm.kernels.triton.prepared import Launch, prepared
from evenorm.layers.layer import Layer


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of kernels, none of which runs: on the meta device there is no value that the host could ask for."""
    names: list[str] = []

    def note(self: Call, launch: Launch, *operands: object, **constants: object) -> None:
        names.append(launch.kernel)

    monkeypatch.setattr(triton, "declines", lambda *_: None)
    monkeypatch.setattr(Call, "_launch", note)
    kernels.choice.cache_clear()
    yield names
    kernels.choice.cache_clear()


LAYERS: list[tuple[Callable[..., Layer], tuple[int, ...], tuple[str, ...], tuple[str, ...]]] = [
    # One launch each way, where a program holds a statistic.
    (lambda: evenorm.LayerNorm(768), (8, 197, 768), ("forward",), ("gradient",)),
    (lambda: evenorm.RMSNorm(4096, activation="silu"), (2, 1, 4096), ("forward",), ("gradient",)),
    (lambda: evenorm.LayerNorm2d(96), (2, 96, 14, 14), ("forward",), ("gradient",)),
    (lambda: evenorm.GroupNorm(32, 256, activation="silu"), (2, 256, 8, 8), ("forward",), ("gradient",)),
    # Parameters of a long row are summed by programs of their own.
    (lambda: evenorm.LayerNorm(20_000), (8, 20_000), ("forward",), ("gradient", "grad_parameters")),
    # Large statistics are cut in pieces, and their sums wait for all of them.
    (
        lambda: evenorm.BatchNorm2d(64, activation="relu"),
        (32, 64, 56, 56),
        ("forward", "merge", "apply"),
        ("gradient", "grad_input"),
    ),
    (
        lambda: evenorm.BatchNorm2d(64, momentum=None),
        (32, 64, 56, 56),
        ("forward", "merge", "apply"),
        ("gradient", "grad_input"),
    ),
    # What comes from more than this batch goes verb by verb.
    (
        lambda: evenorm.BatchNorm2d(64, statistics=evenorm.Renorm()),
        (2, 64, 7, 7),
        ("forward", "apply"),
        ("gradient", "grad_input"),
    ),
]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("make", "shape", "forward", "backward"), LAYERS)
def test_a_training_step(
    make: Callable[..., Layer],
    shape: tuple[int, ...],
    forward: tuple[str, ...],
    backward: tuple[str, ...],
    masked: bool,
    launched: list[str],
) -> None:
    layer = make().to("meta")
    layer.kernel = "triton"
    x = torch.empty(shape, device="meta", requires_grad=True)
    options = {}
    if masked:
        features = {shape.index(n) for n in (layer.weight.shape if layer.weight is not None else ())}
        hidden = [1 if axis in features else n for axis, n in enumerate(shape)]
        options["mask"] = torch.empty(hidden, dtype=torch.bool, device="meta")
    y = layer(x, **options)
    assert tuple(launched) == forward
    launched.clear()
    y.backward(torch.empty_like(y))
    assert tuple(launched) == backward
    assert x.grad is not None
    assert x.grad.stride() == x.stride()


def test_evaluation_is_one_launch(launched: list[str]) -> None:
    layer = evenorm.BatchNorm2d(64, activation="relu").to("meta").eval()
    layer.kernel = "triton"
    x, residual = (torch.empty(32, 64, 56, 56, device="meta") for _ in range(2))
    with torch.no_grad():
        layer(x, residual=residual)
    assert launched == ["apply"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of each new tensor."""
    sizes: list[int] = []
    for name in ("empty", "empty_strided", "empty_like", "zeros"):
        makes = getattr(torch, name)

        def noted(*shape: Any, make: Any = makes, **given: Any) -> torch.Tensor:
            new: torch.Tensor = make(*shape, **given)
            sizes.append(new.numel())
            return new

        monkeypatch.setattr(torch, name, noted)
    return sizes


def images(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta").to(memory_format=torch.channels_last)


BEFORE: list[tuple[Callable[..., Layer], torch.Tensor, tuple[str, ...], tuple[str, ...]]] = [
    (lambda: evenorm.LayerNorm(768), torch.empty(8, 197, 768, device="meta"), ("forward",), ("gradient",)),
    (lambda: evenorm.RMSNorm(4096), torch.empty(3, 1, 4096, device="meta"), ("forward",), ("gradient",)),
    (lambda: evenorm.GroupNorm(32, 256), torch.empty(2, 256, 8, 8, device="meta"), ("forward",), ("gradient",)),
    (lambda: evenorm.GroupNorm(32, 256), images(2, 256, 8, 8), ("forward",), ("gradient",)),
    (lambda: evenorm.InstanceNorm2d(64), torch.empty(2, 64, 8, 8, device="meta"), ("forward",), ("gradient",)),
    (lambda: evenorm.LayerNorm2d(96), torch.empty(2, 96, 14, 14, device="meta"), ("forward",), ("gradient",)),
    (lambda: evenorm.LayerNorm2d(96), images(2, 96, 14, 14), ("forward",), ("gradient",)),
    (
        lambda: evenorm.BatchNorm2d(64, track_running_stats=False),
        torch.empty(2, 64, 7, 7, device="meta"),
        ("forward",),
        ("gradient",),
    ),
    # No tile holds a statistic, so the addition is an operation before; what is carried goes where dx is stored.
    (
        lambda: evenorm.BatchNorm2d(64, track_running_stats=False),
        torch.empty(32, 64, 56, 56, device="meta"),
        ("forward", "merge", "apply"),
        ("gradient", "grad_input"),
    ),
]


@pytest.mark.parametrize(("make", "x", "forward", "backward"), BEFORE)
def test_a_residual_before(
    make: Callable[..., Layer],
    x: torch.Tensor,
    forward: tuple[str, ...],
    backward: tuple[str, ...],
    launched: list[str],
    made: list[int],
) -> None:
    """In the launches of a step without one; no tensor of x's size but y, the sum and dx."""
    layer = make().to("meta")
    layer.kernel, layer.epilogue = "triton", Epilogue(residual="before")
    x, residual, dy, d_total = (t.requires_grad_() for t in (x.detach(), *map(torch.empty_like, (x, x, x))))
    layer(x, residual=residual)
    made.clear()
    launched.clear()
    y, total = layer(x, residual=residual)
    assert tuple(launched) == forward
    # An operation's own is not seen here.
    assert made.count(x.numel()) == (2 if forward == ("forward",) else 1)
    launched.clear()
    made.clear()
    dx, dresidual = torch.autograd.grad((y, total), (x, residual), (dy.detach(), d_total.detach()))
    assert tuple(launched) == backward
    assert made.count(x.numel()) == 1
    assert dx.data_ptr() == dresidual.data_ptr()


@pytest.mark.usefixtures("launched")
def test_sums_that_nobody_asks_for_have_no_room(made: list[int]) -> None:
    """Of each row there would be two, where dx comes in the same sweep."""
    layer = evenorm.LayerNorm(768).to("meta")
    layer.kernel = "triton"
    y = layer(torch.empty(1000, 768, device="meta", requires_grad=True))
    made.clear()
    y.backward(torch.empty_like(y))
    assert 2 * 1000 not in made


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("activation", "residual", "kept", "new"),
    [
        # The input alone is kept, and dx made: what the activation was given is computed again.
        *(("relu", False, 1, 1), ("silu", False, 1, 1)),
        # Beside it the output, which tells the slope, or the residual; and its gradient.
        *(("relu", True, 2, 2), ("silu", True, 2, 2)),
        # The residual's gradient is dy.
        ("identity", True, 1, 1),
    ],
)
def test_memory_of_a_step(activation: str, residual: bool, kept: int, new: int, made: list[int]) -> None:
    """Never more than torch's layers, which keep the input and the output; no other tensor is as large as the input."""
    layer = evenorm.BatchNorm2d(64, activation=activation).to("meta")
    layer.kernel = "triton"
    x, beside, dy = (torch.empty(8, 64, 9, 11, device="meta", requires_grad=k < 2) for k in range(3))
    options = {"residual": beside} if residual else {}
    layer(x, **options).backward(dy)
    made.clear()
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.extend([tensor.numel()] * (tensor.numel() >= x.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x, **options)
    assert len(saved) == kept
    assert sum(n >= x.numel() for n in made) == 1
    y.backward(dy)
    assert sum(n >= x.numel() for n in made) == 1 + new


@pytest.mark.usefixtures("launched")
def test_a_signature_is_prepared_once() -> None:
    layer = evenorm.GroupNorm(4, 64, activation="silu").to("meta")
    layer.kernel = "triton"
    misses = []
    for _ in range(3):
        x = torch.empty(2, 64, 9, 11, device="meta", requires_grad=True)
        layer(x).sum().backward()
        misses.append(prepared.cache_info().misses)
    assert len(set(misses)) == 1

"""Triton's kernels in graphs: those that torch.compile makes, and CUDA's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import evenorm
from evenorm.layers import Layer
from gpu import DEVICE, GPU, there
from told import AS_TOLD

pytestmark = GPU


class Call(NamedTuple):
    """A layer, and what it is called with."""

    layer: Layer
    x: Tensor
    options: dict[str, Any]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def before(layer: Layer) -> Layer:
    layer.epilogue = evenorm.Epilogue(residual="before")
    return layer


CALLS: dict[str, Callable[[], Call]] = {
    "rows": lambda: Call(evenorm.LayerNorm(6), torch.randn(3, 6), {}),
    "a residual and a history": lambda: Call(
        evenorm.BatchNorm2d(4, activation="relu"), torch.randn(3, 4, 2, 3), {"residual": torch.randn(3, 4, 2, 3)}
    ),
    "channels last": lambda: Call(evenorm.GroupNorm(2, 4, activation="silu"), channels_last(3, 4, 2, 3), {}),
    "a permuted input": lambda: Call(evenorm.LayerNorm2d(4), torch.randn(2, 4, 3, 5).transpose(2, 3), {}),
    "parameters in another order": lambda: Call(
        evenorm.Norm("b [h] t [d]", affine="d h", h=3, d=4), torch.randn(2, 3, 2, 4), {}
    ),
    "a residual before": lambda: Call(before(evenorm.LayerNorm(6)), torch.randn(3, 6), {"residual": torch.randn(3, 6)}),
    "a residual before, permuted": lambda: Call(
        before(evenorm.LayerNorm2d(4)),
        torch.randn(2, 4, 3, 5).transpose(2, 3),
        {"residual": torch.randn(2, 4, 3, 5).transpose(2, 3)},
    ),
    "a mask": lambda: Call(evenorm.BatchNorm1d(4), torch.randn(3, 4, 5), {"mask": torch.rand(3, 5) > 0.3}),
    "more than a batch": lambda: Call(
        evenorm.BatchNorm1d(4, statistics=evenorm.Renorm()), torch.randn(3, 4, 5), {"mask": torch.rand(3, 5) > 0.3}
    ),
}


@pytest.mark.slow
# Dynamo makes an instance of what is never one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_step(name: str) -> None:
    """The same bits as without a compiler, in what it returns and in what it remembers."""
    torch.compiler.reset()
    made = CALLS[name]()
    made.layer.kernel = "triton"
    layers = [copy.deepcopy(made.layer).to(DEVICE) for _ in range(2)]
    backend = "inductor" if DEVICE == "cuda" else AS_TOLD
    x, dy, options = there(made.x), there(torch.randn(made.x.shape)), there(made.options)
    compiled: Any = torch.compile(layers[1], fullgraph=True, backend=backend)
    found = []
    for layer, call in ((layers[0], layers[0]), (layers[1], compiled)):
        leaf = x.clone().requires_grad_()
        y = call(leaf, **options)
        outputs = y if isinstance(y, tuple) else (y,)
        gradients = torch.autograd.grad(outputs, (leaf, *layer.parameters()), [dy] * len(outputs))
        found.append((*(t.detach() for t in outputs), *gradients, *layer.buffers()))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU; test_triton_launches.py sees that no value is read back")
def test_a_cuda_graph_holds_a_step() -> None:
    layer = evenorm.BatchNorm2d(4, activation="relu").to(DEVICE)
    x = torch.randn(3, 4, 5, 7, device=DEVICE, requires_grad=True)
    dy, other = torch.randn_like(x), torch.randn_like(x)

    def step() -> tuple[Tensor, ...]:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        # The first call compiles, which a graph cannot hold.
        step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    with torch.no_grad():
        x.copy_(other)
    graph.replay()
    for mine, theirs in zip(held, step(), strict=True):
        assert torch.equal(mine, theirs)

"""Norm: what the articles write in words, written as patterns; and where it stands in a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evenorm
from evenorm import Affine, Norm, Pattern, Running
from kernels_here import AVAILABLE

KERNELS = pytest.mark.parametrize("kernel", AVAILABLE)


def gradients(model: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of all parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], dy)]


def assert_same_network(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    dy = torch.randn_like(one(x))
    other.load_state_dict(one.state_dict())
    for training in (True, False):
        pair = gradients(one.train(training), x, dy), gradients(other.train(training), x, dy)
        for mine, theirs in zip(*pair, strict=True):
            torch.testing.assert_close(mine, theirs)


def with_kernel(layer: Norm, kernel: str) -> Norm:
    layer.kernel = kernel
    return layer


@KERNELS
@pytest.mark.parametrize("order", ["norm before activation", "activation before norm"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_either_side_of_an_activation(kernel: str, order: str, memory: torch.memory_format) -> None:
    def network(norm: nn.Module) -> nn.Module:
        pair = [norm, nn.GELU()] if order == "norm before activation" else [nn.GELU(), norm]
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), *pair, nn.Conv2d(8, 4, 3))

    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=memory)
    batch = with_kernel(Norm("[n] c [...]", c=8, statistics=Running(0.1)), kernel)
    assert_same_network(network(batch), network(nn.BatchNorm2d(8)), x)
    instance = with_kernel(Norm("n c [...]", affine=None), kernel)
    assert_same_network(network(instance), network(nn.InstanceNorm2d(8)), x)
    everything = with_kernel(Norm("n [c] [...]", affine=None), kernel)
    assert_same_network(network(everything), network(nn.GroupNorm(1, 8, affine=False)), x)


@KERNELS
def test_sequences_with_channels_last(kernel: str) -> None:
    """(N, L, C), as a transformer has it: batch norm of it without a transposition, and layer norm."""
    x, dy = torch.randn(2, 4, 7, 6, dtype=torch.float64).unbind()
    batch = with_kernel(Norm("[n l] c", c=6, statistics=Running(0.1)).double(), kernel)
    twin = nn.BatchNorm1d(6).double()
    for training in (True, False):
        mine = gradients(batch.train(training), x, dy)
        theirs = gradients(twin.train(training), x.mT, dy.mT)
        torch.testing.assert_close(mine[0], theirs[0].mT)
        torch.testing.assert_close(mine[1], theirs[1].mT)
        torch.testing.assert_close(mine[2:], theirs[2:])
    torch.testing.assert_close(batch.state_dict(), twin.state_dict())
    layer = with_kernel(Norm("n l [c]", c=6).double(), kernel)
    assert_same_network(layer, nn.LayerNorm(6).double(), x)


@KERNELS
def test_attention_normalizes_its_queries_where_they_lie(kernel: str) -> None:
    """A slice of one fused projection, per head, and a weight for each head."""
    fused = torch.randn(2, 5, 3 * 4 * 8, dtype=torch.float64)
    queries = fused[..., :32].unflatten(-1, (4, 8))
    layer = with_kernel(Norm("b t h [d]", centered=False, affine="h d", bias=False, h=4, d=8).double(), kernel)
    with torch.no_grad():
        assert isinstance(layer.weight, Tensor)
        layer.weight.normal_()
    wanted = torch.nn.functional.rms_norm(queries, [8], eps=1e-5) * layer.weight
    torch.testing.assert_close(layer(queries), wanted)


def test_parameters_lie_on_the_axes_of_known_size() -> None:
    grouped = Norm("n (g [c]) [...]", g=2, c=3)
    assert grouped.weight is not None
    assert grouped.weight.shape == grouped.bias.shape == (2, 3)
    assert Norm("n (g [c]) [...]", g=2, affine=None).weight is None
    without = Norm("n [c] l", c=6, bias=False)
    assert without.bias is None
    assert Norm("n [c] l", c=6, affine=Affine("c", offset=1.0)).weight.tolist() == [0.0] * 6


def test_takes_a_parsed_pattern() -> None:
    pattern = Pattern.parse("n [c] l")
    x = torch.randn(2, 6, 5)
    torch.testing.assert_close(Norm(pattern, c=6)(x), Norm("n [c=6] l")(x))


def test_starts_as_the_identity_on_normal_values() -> None:
    """γ·x̂ + β with γ = 1 and β = 0, the offset included."""
    x = torch.randn(4, 6, 5)
    plain = evenorm.normalize(x, "n [c] l")
    for layer in (Norm("n [c] l", c=6), Norm("n [c] l", affine=Affine("c", offset=1.0), c=6)):
        torch.testing.assert_close(layer(x), plain)

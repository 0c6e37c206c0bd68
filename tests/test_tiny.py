"""Everything once, in a second: what to run first and what to read first."""

import torch

import evenorm
from evenorm import Moments, Pattern


def test_pattern_binds_to_a_shape() -> None:
    assert Pattern.parse("n (g [c]) [...]", g=2).bind((4, 6, 5)).statistics_shape == (4, 2)


def test_moments_merge() -> None:
    x = torch.randn(10, dtype=torch.float64)
    whole = Moments.of(x[:3]).merge(Moments.of(x[3:]))
    torch.testing.assert_close(whole.mean, x.mean())
    torch.testing.assert_close(whole.unbiased, x.var())


def test_normalize_is_the_formula() -> None:
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(evenorm.normalize(x, "n [c] l"), expected)


def test_layer_is_torchs_and_trains() -> None:
    ours, theirs = evenorm.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    assert isinstance(ours, torch.nn.BatchNorm2d)
    x, dy = torch.randn(2, 4, 3, 5, 5).unbind()
    for training in (True, False):
        gradients = []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(dy)
            gradients += [y, leaf.grad, layer.weight.grad, layer.bias.grad, layer.running_var]
        for mine, torchs in zip(gradients[:5], gradients[5:], strict=True):
            torch.testing.assert_close(mine, torchs)


def test_norm_takes_any_pattern() -> None:
    layer = evenorm.Norm("b t h [d]", affine="h d", centered=False, h=2, d=8)
    assert layer(torch.randn(3, 5, 2, 8)).square().mean().item() < 1.01

"""Random networks for folding: segments that are known to be foldable or known not to be, one after another.

Parameters and statistics are random: fresh ones (γ = 1, β = 0, mean 0, variance 1) hide every mistake.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import evenorm

__all__ = ["Graph", "random_graph", "randomize"]

CONVS: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OURS = (evenorm.BatchNorm1d, evenorm.BatchNorm1d, evenorm.BatchNorm2d, evenorm.BatchNorm3d)
INSTANCES = (None, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
WIDTH = 4


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and statistics everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.rand(t.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            for name, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if not t.is_floating_point():
                    continue
                normalizes = isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm))
                if name == "running_var" or (normalizes and name == "weight"):
                    uniform(t, 0.4, 2.0)
                else:
                    uniform(t, -0.5, 0.5)
    return model


class Standardized(nn.Conv2d):
    """A convolution whose weights are not the ones it computes with."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


@dataclass
class Graph:
    """A network, an input, and what is to become of its normalizers."""

    model: nn.Module
    input: Tensor
    foldable: set[str]
    others: set[str]


Step = Callable[[Any, Tensor], Tensor]


class _Net(nn.Module):
    def __init__(self, layers: dict[str, nn.Module], steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x


@dataclass
class _Builder:
    rng: random.Random
    dims: int
    dtype: torch.dtype
    layers: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    foldable: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def add(self, layer: nn.Module, prefix: str = "layer") -> str:
        name = f"{prefix}{len(self.layers)}"
        self.layers[name] = layer
        return name

    def conv(self, *, padding: bool = True, kind: Any = None) -> str:
        """A layer that keeps the number of channels; spatial sizes may change."""
        rng = self.rng
        bias = rng.random() < 0.5
        if self.dims == 0:
            return self.add(nn.Linear(WIDTH, WIDTH, bias=bias), "linear")
        options: dict[str, Any] = {"groups": rng.choice((1, 2, 4)), "bias": bias, "stride": rng.choice((1, 1, 2))}
        transposed = TRANSPOSED[self.dims]
        if kind is None and transposed is not None and rng.random() < 0.25:
            if not padding:
                # Between strides it sums over nothing, and a shift before it would have to reach there.
                return self.add(transposed(WIDTH, WIDTH, 1, **{**options, "stride": 1}), "transposed")
            options["dilation"] = options["padding"] = rng.choice((1, 2))
            return self.add(transposed(WIDTH, WIDTH, 3, output_padding=options["stride"] - 1, **options), "transposed")
        if padding:
            options["dilation"] = rng.choice((1, 2))
            options["padding"] = "same" if options["stride"] == 1 and rng.random() < 0.2 else options["dilation"]
            options["padding_mode"] = rng.choice(("zeros", "zeros", "reflect", "circular", "replicate"))
        size = 3 if padding else 1
        return self.add((kind or CONVS[self.dims])(WIDTH, WIDTH, size, **options), "conv")

    def same_size_conv(self) -> str:
        if self.dims == 0:
            return self.conv()
        options: dict[str, Any] = {"padding": 1, "groups": self.rng.choice((1, 2)), "bias": self.rng.random() < 0.5}
        return self.add(CONVS[self.dims](WIDTH, WIDTH, 3, **options), "conv")

    def norm(self, *, foldable: bool, **options: Any) -> str:
        kinds: list[Any] = [NORMS[self.dims], OURS[self.dims]]
        if self.dims and not options:
            kinds.append(INSTANCES[self.dims])
        kind = self.rng.choice(kinds)
        if kind is INSTANCES[self.dims]:
            options = {"track_running_stats": True, "affine": self.rng.random() < 0.7}
        options = {"affine": self.rng.random() < 0.7, "eps": self.rng.choice((1e-5, 1e-3, 0.1)), **options}
        name = self.add(kind(WIDTH, **options), "norm")
        (self.foldable if foldable else self.others).add(name)
        return name

    def chain(self, *names: str) -> None:
        def step(net: Any, x: Tensor) -> Tensor:
            for name in names:
                x = getattr(net, name)(x)
            return x

        self.steps.append(step)

    def activation(self) -> str:
        return self.add(self.rng.choice((nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.LeakyReLU(0.2))), "act")


# Segments: each leaves a tensor with WIDTH channels.


def plain(b: _Builder) -> None:
    b.chain(b.conv(), b.norm(foldable=True), b.activation())


def dropout_between(b: _Builder) -> None:
    """In evaluation it hands its input on."""
    b.chain(b.conv(), b.add(nn.Dropout(0.5)), b.norm(foldable=True))


def activation_between(b: _Builder) -> None:
    b.chain(b.conv(), b.activation(), b.norm(foldable=False), b.activation())


def two_norms(b: _Builder) -> None:
    b.chain(b.conv(), b.norm(foldable=True), b.norm(foldable=True))


def norm_first(b: _Builder) -> None:
    """Before a layer that pads nothing."""
    b.chain(b.activation(), b.norm(foldable=True), b.conv(padding=False))


def norm_first_zero_padded(b: _Builder) -> None:
    if b.dims == 0:
        return norm_first(b)
    b.chain(b.activation(), b.norm(foldable=False), b.same_size_conv())
    return None


def norm_first_reflected(b: _Builder) -> None:
    if b.dims == 0:
        return norm_first(b)
    conv = b.add(CONVS[b.dims](WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"), "conv")
    b.chain(b.activation(), b.norm(foldable=True), conv)
    return None


def norm_before_two(b: _Builder) -> None:
    act, norm = b.activation(), b.norm(foldable=True)
    one, two = (b.add(CONVS[b.dims](WIDTH, WIDTH, *(() if b.dims == 0 else (1,))), "conv") for _ in range(2))

    def step(net: Any, x: Tensor) -> Tensor:
        y = getattr(net, norm)(getattr(net, act)(x))
        return torch.sigmoid(getattr(net, one)(y)) + getattr(net, two)(y)

    b.steps.append(step)


def residual(b: _Builder) -> None:
    conv, norm = b.same_size_conv(), b.norm(foldable=True)
    b.steps.append(lambda net, x: torch.relu(x + getattr(net, norm)(getattr(net, conv)(x))))


def downsampled(b: _Builder) -> None:
    """Two branches, each with its own normalizer, added in place."""
    one, two, three, four = b.same_size_conv(), b.norm(foldable=True), b.same_size_conv(), b.norm(foldable=True)

    def step(net: Any, x: Tensor) -> Tensor:
        y = getattr(net, two)(getattr(net, one)(x))
        y += getattr(net, four)(getattr(net, three)(x))
        return y.relu_()

    b.steps.append(step)


def conv_used_twice(b: _Builder) -> None:
    """One convolution before two normalizers."""
    conv, one, two = b.same_size_conv(), b.norm(foldable=False), b.norm(foldable=False)

    def step(net: Any, x: Tensor) -> Tensor:
        y = torch.tanh(getattr(net, one)(getattr(net, conv)(x)))
        return torch.tanh(getattr(net, two)(getattr(net, conv)(y)))

    b.steps.append(step)


def output_used_twice(b: _Builder) -> None:
    conv, norm = b.same_size_conv(), b.norm(foldable=False)

    def step(net: Any, x: Tensor) -> Tensor:
        y = getattr(net, conv)(x)
        return torch.relu(getattr(net, norm)(y)) + y

    b.steps.append(step)


def block_used_twice(b: _Builder) -> None:
    """Convolution and normalizer together, so one folding serves both calls."""
    conv, norm = b.same_size_conv(), b.norm(foldable=True)
    b.chain(conv, norm, b.activation(), conv, norm)


def shared_norm(b: _Builder) -> None:
    one, two, norm = b.same_size_conv(), b.same_size_conv(), b.norm(foldable=True)
    b.chain(one, norm, b.activation(), two, norm)


def tied_weights(b: _Builder) -> None:
    """Two convolutions with one Parameter: each gets its own."""
    one = b.same_size_conv()
    two = b.add(type(b.layers[one])(*_arguments(b.layers[one])), "conv")
    b.layers[two].weight = b.layers[one].weight
    b.chain(one, b.norm(foldable=True), b.activation(), two, b.norm(foldable=True))


def _arguments(layer: Any) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return WIDTH, WIDTH
    return WIDTH, WIDTH, 3, 1, 1, 1, layer.groups


def linear_of_positions(b: _Builder) -> None:
    """A Linear on (N, positions, C) between transpositions, a normalizer on (N, C, positions)."""
    linear, norm = b.add(nn.Linear(WIDTH, WIDTH, bias=b.rng.random() < 0.5), "linear"), b.norm(foldable=True)
    act, last = b.activation(), b.add(nn.Linear(WIDTH, WIDTH), "linear")
    first = b.norm(foldable=True)

    def step(net: Any, x: Tensor) -> Tensor:
        x = getattr(net, norm)(getattr(net, linear)(x.movedim(1, -1)).movedim(-1, 1))
        x = getattr(net, first)(getattr(net, act)(x))
        return torch.sin(getattr(net, last)(x.transpose(1, -1)).transpose(1, -1))

    b.steps.append(step)


def linear_flattened(b: _Builder) -> None:
    """As LeViT has it: positions are samples to the normalizer."""
    linear = b.add(nn.Linear(WIDTH, WIDTH, bias=b.rng.random() < 0.5), "linear")
    norm = b.add(b.rng.choice((nn.BatchNorm1d, evenorm.BatchNorm1d))(WIDTH), "norm")
    b.foldable.add(norm)

    def step(net: Any, x: Tensor) -> Tensor:
        y = getattr(net, linear)(x.movedim(1, -1))
        return torch.sin(getattr(net, norm)(y.flatten(0, -2)).reshape_as(y)).movedim(-1, 1)

    b.steps.append(step)


def shuffled(b: _Builder) -> None:
    """Channels change places on the way: as many as before, but others."""
    conv, norm = b.same_size_conv(), b.norm(foldable=False)

    def step(net: Any, x: Tensor) -> Tensor:
        y = getattr(net, conv)(x)
        return torch.sin(getattr(net, norm)(y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)))

    b.steps.append(step)


def affine_before_linear(b: _Builder) -> None:
    """Layer and RMS normalization of positions give weight and bias to the Linear that follows."""
    kind = b.rng.choice((nn.LayerNorm, nn.RMSNorm, evenorm.LayerNorm, evenorm.RMSNorm))
    norm, linear = b.add(kind(WIDTH), "norm"), b.add(nn.Linear(WIDTH, WIDTH, bias=b.rng.random() < 0.5), "linear")
    b.foldable.add(norm)
    b.steps.append(lambda net, x: getattr(net, linear)(getattr(net, norm)(x.movedim(1, -1))).movedim(-1, 1).sin())


def no_history(b: _Builder) -> None:
    b.chain(b.same_size_conv(), b.norm(foldable=False, track_running_stats=False), b.activation())


def changed_in_place(b: _Builder) -> None:
    conv, norm = b.same_size_conv(), b.norm(foldable=False)
    b.steps.append(lambda net, x: torch.sin(getattr(net, norm)(getattr(net, conv)(x).mul_(1.5))))


def through_a_view(b: _Builder) -> None:
    """Channels are permuted on the way."""
    conv, norm = b.same_size_conv(), b.norm(foldable=False)
    b.steps.append(lambda net, x: torch.sin(getattr(net, norm)(getattr(net, conv)(x).flip(1))))


def weight_used_elsewhere(b: _Builder) -> None:
    conv, norm = b.same_size_conv(), b.norm(foldable=False)

    def step(net: Any, x: Tensor) -> Tensor:
        layer: Any = getattr(net, conv)
        return torch.sin(getattr(net, norm)(layer(x)) * layer.weight.abs().mean())

    b.steps.append(step)


def own_forward(b: _Builder) -> None:
    if b.dims != 2:
        return plain(b)
    b.chain(b.conv(kind=Standardized), b.norm(foldable=False), b.activation())
    return None


def hooked(b: _Builder) -> None:
    conv, norm = b.same_size_conv(), b.norm(foldable=False)
    b.layers[norm].register_forward_hook(lambda module, args, y: y * 2)
    b.chain(conv, norm, b.activation())


def with_activation(b: _Builder) -> None:
    """A layer of ours with its activation, which must stay."""
    norm = b.add(OURS[b.dims](WIDTH, activation=b.rng.choice(("relu", "silu", "gelu"))), "norm")
    b.foldable.add(norm)
    b.chain(b.conv(), norm)


SEGMENTS = (
    *(plain, dropout_between, activation_between, two_norms, norm_first, norm_first_zero_padded),
    *(norm_first_reflected, norm_before_two, residual, downsampled, conv_used_twice, output_used_twice),
    *(block_used_twice, shared_norm, tied_weights, no_history, changed_in_place, through_a_view),
    *(weight_used_elsewhere, own_forward, hooked, with_activation),
    *(linear_of_positions, linear_flattened, shuffled, affine_before_linear),
)


def random_graph(seed: int) -> Graph:
    """Two to four segments in one of four dtypes; every segment comes round."""
    rng = random.Random(seed)
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    b = _Builder(rng, rng.choice((0, 1, 2, 2, 3)), dtype)
    b.chain(b.same_size_conv(), b.add(nn.Tanh()))
    for segment in (SEGMENTS[seed % len(SEGMENTS)], *rng.choices(SEGMENTS, k=rng.choice((1, 2, 3)))):
        segment(b)
    model = randomize(_Net(b.layers, b.steps), seed).to(dtype).eval()
    if dtype == torch.bfloat16 and rng.random() < 0.5:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.float()
    generator = torch.Generator().manual_seed(seed)
    shape = (3, WIDTH, *(12, 9, 10)[: b.dims])
    return Graph(model, torch.randn(shape, generator=generator).to(dtype), b.foldable, b.others)

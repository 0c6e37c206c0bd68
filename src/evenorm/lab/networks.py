"""The small networks that the lab trains: an MLP, a convolutional and a residual network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evenorm.lab.normalizers import Layer, Normalizer

Model = Literal["mlp", "cnn", "resnet"]
Placement = Literal["before", "after"]
MODELS: tuple[Model, ...] = get_args(Model)
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

# Makes an activation function.
Activation = Callable[[], nn.Module]

# He's gain, for ReLU.
HE = 2**0.5

# The residual part ends in 4 × 4 maps whatever the size of the images.
GRID = 2


class Block(nn.Module):
    """One hidden layer: linear map, normalizer, activation; or the normalizer last."""

    def __init__(
        self, linear: nn.Module, normalizer: nn.Module, placement: Placement, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.linear = linear
        self.normalizer = normalizer
        self.activation = activation()
        self.placement = placement

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) to (N, …)."""
        x = self.linear(x)
        if self.placement == "before":
            return self.activation(self.normalizer(x))
        return self.normalizer(self.activation(x))


class Residual(nn.Module):
    """Two blocks and the way around them: y = x + block(block(x))."""

    def __init__(self, first: Block, second: Block) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x + self.second(self.first(x))


class Network(nn.Sequential):
    """A network whose hidden layers can be walked, for probes."""

    def hidden(self) -> Iterator[tuple[str, Block]]:
        """Yield the hidden layers with the names that reports use, input first."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        for index, block in enumerate(blocks, 1):
            kind = "conv" if isinstance(block.linear, nn.Conv2d) else "hidden"
            yield f"{kind} {index}", block


def build(
    model: Model,
    shape: tuple[int, int, int],
    classes: int,
    normalizer: Normalizer,
    placement: Placement = "before",
    seed: int = 0,
) -> Network:
    """Build a network for images of a shape (C, H, W); the same seed gives every row the same weights.

    Hidden layers start with He's normal weights and zero biases. Each is normalized; the output
    layer is not.

    >>> from evenorm.lab.normalizers import NORMALIZERS
    >>> network = build("cnn", (1, 8, 8), 10, NORMALIZERS["batch"])
    >>> network(torch.zeros(2, 1, 8, 8)).shape, [name for name, _ in network.hidden()]
    (torch.Size([2, 10]), ['conv 1', 'conv 2', 'conv 3', 'conv 4'])
    """

    def conv(inputs: int, outputs: int, stride: int = 1) -> Block:
        linear = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        return Block(linear, normalizer.layer(True, outputs), placement)

    channels, height, width = shape
    # Large images are halved by the first convolution, for speed.
    stride = 2 if min(height, width) > 16 else 1
    body: list[nn.Module]
    if model == "mlp":
        body = dense(channels * height * width, (128,) * 3, lambda size: normalizer.layer(False, size), placement)
        features = 128
    elif model == "cnn":
        body = [conv(channels, 16, stride), nn.MaxPool2d(2), conv(16, 16), conv(16, 32), nn.MaxPool2d(2), conv(32, 32)]
        features = 32 * GRID * GRID
    else:
        body = [conv(channels, 24, stride), nn.MaxPool2d(2)]
        body += [Residual(conv(24, 24), conv(24, 24)) for _ in range(3)]
        features = 24 * GRID * GRID
    if model != "mlp":
        body += [nn.AdaptiveAvgPool2d(GRID), nn.Flatten()]
    network = Network(*body, nn.Linear(features, classes))
    initialize(network, seed)
    if normalizer.weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _, block in network.hidden():
                normalizer.weights(block.linear)
    return network


def perceptron(
    inputs: int,
    widths: Sequence[int],
    classes: int,
    layer: Layer,
    *,
    activation: Activation = nn.ReLU,
    placement: Placement = "before",
    bias: bool = True,
    gain: float = HE,
    seed: int = 0,
) -> Network:
    """Build a multilayer perceptron whose hidden layers are normalized; its input is flattened.

    >>> import evenorm
    >>> perceptron(64, [100, 100], 10, evenorm.BatchNorm1d)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    body = dense(inputs, widths, layer, placement, activation, bias)
    network = Network(*body, nn.Linear([inputs, *widths][-1], classes))
    initialize(network, seed, gain)
    return network


def dense(
    inputs: int,
    widths: Sequence[int],
    layer: Layer,
    placement: Placement,
    activation: Activation = nn.ReLU,
    bias: bool = True,
) -> list[nn.Module]:
    """Return hidden layers of these widths, one after another."""
    sizes = zip([inputs, *widths], widths, strict=False)
    blocks = [Block(nn.Linear(m, n, bias=bias), layer(n), placement, activation) for m, n in sizes]
    return [nn.Flatten(), *blocks]


def identity(size: int) -> nn.Module:
    """Return no layer, where one would stand."""
    return nn.Identity()


def initialize(network: nn.Module, seed: int, gain: float = HE) -> None:
    r"""Draw every linear map's weights from one generator, in order: :math:`w \sim N(0, gain^2 / inputs)`.

    Biases are zero. The default gain is He's rule for ReLU.

    Source:
        He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
    """
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs = module.weight[0].numel()
            nn.init.normal_(module.weight, 0.0, gain / inputs**0.5, generator=draw)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

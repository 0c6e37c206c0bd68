"""What does ε do where it is too large, and where it is too small?"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import falling
from evenorm.lab.networks import Network, perceptron
from evenorm.lab.rates import accuracy, attempts
from evenorm.lab.setting import Setting
from evenorm.lab.training import tensors

WIDTHS = (64, 64)
RATE = 0.1
TYPICAL = (1e-5, 1e-6, 1e-7, 1e-8)
EPSILONS = (1e-10, *reversed(TYPICAL), 1e-3, 0.1, 1.0, 10.0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = tuple(10.0**-exponent for exponent in range(2, 13))
# Of values in one channel.
BATCH = 64


def longhand(x: Tensor, eps: float) -> Tensor:
    """Normalize each column by the formula, every step rounded to the dtype of x."""
    mean = x.mean(0)
    variance = (x - mean).square().mean(0)
    return (x - mean) / (variance + torch.tensor(eps, dtype=x.dtype)).sqrt()


def impossible(y: Tensor) -> float:
    """The share of columns in percent that no n normalized values can have: beyond √n, or not finite.

    Room for the rounding of bfloat16 is left.
    """
    return 100 * float(1 - (y.float().abs() <= 1.05 * len(y) ** 0.5).all(0).float().mean())


def measure(setting: Setting, seed: int) -> Observation:
    """Train with every ε; then normalize channels that hardly vary, in every dtype."""
    images = setting.images
    steps = setting.steps(quick=400, full=1600, large=10000)
    found = Observation(curves={"accuracy": {}, "deviation": {}, "impossible": {}})
    reached, deviations = {}, {}
    x, _ = tensors(images, images.train_pixels[:256], images.train_labels[:256])
    for eps in EPSILONS:

        def start(eps: float = eps) -> Network:
            layer = partial(evenorm.BatchNorm1d, eps=eps)
            return perceptron(int(np.prod(images.shape)), WIDTHS, len(images.classes), layer, seed=seed)

        deviations[eps] = spread(start(), x)
        trained = attempts(start, images, [RATE], steps=steps, seed=seed, pace=falling(steps))[0]
        reached[eps] = accuracy(trained.network, images)
    found.curves["accuracy"]["batch"] = (EPSILONS, list(reached.values()))
    found.curves["deviation"]["batch"] = (EPSILONS, list(deviations.values()))
    typical = [reached[eps] for eps in TYPICAL]
    found.effects["typical"] = max(typical) - min(typical)
    found.effects["large"] = 100 * (1 - deviations[1.0])

    draw = torch.Generator().manual_seed(seed)
    # Channels with a mean of 10 whose deviations lie between 0 and 0.1, an eighth of them constant.
    widths = 0.1 * torch.rand(512, generator=draw) * (torch.arange(512) % 8 > 0)
    values = 10 + widths * torch.randn(BATCH, 512, generator=draw)
    for name, dtype in DTYPES.items():
        rounded = values.to(dtype)
        by_formula = [impossible(longhand(rounded, eps)) for eps in SMALL]
        by_layer = [impossible(layer(rounded, eps)) for eps in SMALL]
        found.curves["impossible"] |= {f"longhand, {name}": (SMALL, by_formula), f"evenorm, {name}": (SMALL, by_layer)}
        if dtype == torch.float16:
            found.effects["small"] = by_formula[SMALL.index(1e-8)]
            found.effects["wide"] = max(by_layer)
    return found


@torch.no_grad()
def layer(x: Tensor, eps: float) -> Tensor:
    """Normalize each column by the layer."""
    return evenorm.BatchNorm1d(x.shape[1], eps=eps, affine=False)(x)


@torch.no_grad()
def spread(network: Network, x: Tensor) -> float:
    """The standard deviation of a fresh network's normalized values, root mean square over channels and layers."""
    seen: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, evenorm.BatchNorm1d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.var(0, correction=0)))
    network(x)
    return float(torch.cat(seen).mean().sqrt())


EXPERIMENT = Experiment(
    question="What does ε do where it is too large, and where it is too small?",
    protocol=(
        "Two hidden layers of 64 ReLU units on images, batch normalization before each, He's start, batches of 64, "
        "plain stochastic gradient descent from rate 0.1 falling to zero, with ε from 1e-10 to 10: held-out accuracy, "
        "and the deviation of the normalized values before training, which should be 1. Then 64 values in each of 512 "
        "channels with a mean of 10 and deviations from 0 to 0.1, an eighth of them constant: by the formula, every "
        "step in float32, bfloat16 and float16, and by evenorm's layer. A channel is impossible where a value is not "
        "finite or beyond √64, the largest that one of 64 normalized values can have."
    ),
    claims=(
        Claim(
            "typical",
            "Between 1e-5 and 1e-8 it does not matter which ε.",
            "Sharma, “Batch and Layer Normalization” (2026), Hyperparameter: Epsilon: “typical values: 1e-5 to 1e-8”",
            "range of the held-out accuracy over 1e-5, 1e-6, 1e-7, 1e-8",
            Rule(holds=1.5, reverses=5.0),
            unit="points",
        ),
        Claim(
            "large",
            "Too large an ε affects the normalization: here ε = 1.",
            "Sharma (2026), Hyperparameter: Epsilon",
            "by how much the deviation of the normalized values stays below 1",
            Rule(holds=10.0, reverses=1.0),
            unit="%",
        ),
        Claim(
            "small",
            "Too small an ε is numerically unstable: here ε = 1e-8 in float16, in which it is zero.",
            "Sharma (2026), Hyperparameter: Epsilon",
            "channels that come out impossible by the formula in float16",
            Rule(holds=1.0, reverses=0.1),
            unit="%",
        ),
        Claim(
            "wide",
            "With statistics in higher precision a small ε is harmless in every dtype.",
            "Micikevicius et al., “Mixed Precision Training” (2018), section 3.3; this library's numerics contract",
            "channels that come out impossible by evenorm's layer in float16, the most over ε from 0.01 to 1e-12",
            Rule(holds=0.1, reverses=1.0),
            unit="%",
        ),
    ),
    changes=(
        "Activations far from variance 1: what is too large is large beside the variance. Constant channels are what "
        "images with black borders and dead ReLU units bring; without them float16 fails at smaller deviations only. "
        "In gradients a small ε lets a constant channel amplify by 1/√ε, in every precision."
    ),
    measure=measure,
    plots=(
        Plot("accuracy", "Held-out accuracy", "ε", "held-out images right, %", logarithmic="x"),
        Plot("deviation", "Deviation of the normalized values at the start", "ε", "deviation", logarithmic="x"),
        Plot("impossible", "Channels that come out impossible", "ε", "%", logarithmic="x"),
    ),
)

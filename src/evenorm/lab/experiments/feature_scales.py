"""Does layer normalization need features that are alike?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import falling
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.rates import accuracy, attempts, lowest
from evenorm.lab.setting import Setting

WIDTHS = (64, 64)
RATES = (0.01, 0.1)
# Standard deviation of the decimal logarithm of a feature's unit.
DECADES = (0.0, 0.5, 1.0, 1.5, 2.0)
LAYERS: dict[str, Layer] = {"none": identity, "batch": evenorm.BatchNorm1d, "layer": evenorm.LayerNorm}


class Units(nn.Module):
    """Gives every feature a unit of its own: (N, …) to (N, D), column by column times a factor."""

    factors: Tensor

    def __init__(self, features: int, decades: float, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("factors", 10 ** (decades * torch.randn(features, generator=draw)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) to (N, D)."""
        return x.flatten(1) * self.factors


def measure(setting: Setting, seed: int) -> Observation:
    """Train behind each normalizer of the features, for features ever less alike."""
    images = setting.images
    steps = setting.steps(quick=300, full=1000, large=10000)
    decades = setting.pick(quick=DECADES[::2], full=DECADES, large=DECADES)
    features, classes = int(np.prod(images.shape)), len(images.classes)
    found = Observation(curves={"accuracy": {}})
    reached: dict[str, list[float]] = {}
    for name, layer in LAYERS.items():
        reached[name] = []
        for spread in decades:

            def start(layer: Layer = layer, spread: float = spread) -> nn.Module:
                body = perceptron(features, WIDTHS, classes, identity, seed=seed)
                return nn.Sequential(Units(features, spread, seed), layer(features), body)

            best = lowest(attempts(start, images, RATES, steps=steps, seed=seed, pace=falling(steps)))
            reached[name].append(accuracy(best.network, images))
        found.curves["accuracy"][name] = (decades, reached[name])
    found.effects["unlike"] = reached["batch"][-1] - reached["layer"][-1]
    found.effects["lost"] = reached["layer"][0] - reached["layer"][-1]
    found.effects["untouched"] = reached["batch"][0] - reached["batch"][-1]
    return found


EXPERIMENT = Experiment(
    question="Does layer normalization need features that are alike?",
    protocol=(
        "The pixels of images as features, each times a unit of its own, as in a table whose columns are meters, years "
        "and dollars: the decimal logarithm of the factors is normal with deviation 0 to 2. They are normalized by "
        "batch normalization (each feature over the batch), layer normalization (each image over its features) or not, "
        "and learned by two hidden layers of 64 ReLU units; batches of 64, plain stochastic gradient descent from 0.01 "
        "or 0.1, the better by training loss, falling to zero."
    ),
    claims=(
        Claim(
            "unlike",
            "On features of unlike scales layer normalization is worse than batch normalization.",
            "Sharma, “Batch and Layer Normalization” (2026), Limitations of Layer Normalization",
            "held-out accuracy behind batch normalization, minus that behind layer normalization, at deviation 2",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "lost",
            "Layer normalization assumes that features have similar distributions.",
            "Sharma (2026), Limitations of Layer Normalization",
            "held-out accuracy behind layer normalization on features alike, minus that at deviation 2",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "untouched",
            "Batch normalization does not mind the features' units.",
            "Ioffe & Szegedy (2015), section 3: each feature is normalized independently",
            "held-out accuracy behind batch normalization on features alike, minus that at deviation 2",
            Rule(holds=1.0, reverses=5.0),
            unit="points",
        ),
    ),
    changes=(
        "Inside a network features come from one linear map and are rather alike; the claim bites on inputs. A linear "
        "map in front of the layer normalization, or standardized inputs, take the units away first."
    ),
    measure=measure,
    plots=(
        Plot(
            "accuracy",
            "Held-out accuracy, by how unlike the features are",
            "deviation of the features' units, decades",
            "held-out images right, %",
        ),
    ),
)

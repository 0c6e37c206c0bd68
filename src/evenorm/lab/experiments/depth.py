"""Does batch normalization make deep networks trainable?"""

from __future__ import annotations

import numpy as np
from torch import nn

import evenorm
from evenorm.lab.data import Images
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.networks import Block, Network, Residual, identity, initialize
from evenorm.lab.normalizers import Layer
from evenorm.lab.rates import accuracy, attempts, lowest
from evenorm.lab.setting import Setting

WIDTH = 32
RATES = (0.01, 0.1)


def build(images: Images, depth: int, layer: Layer, residual: bool, seed: int) -> Network:
    """Return so many hidden layers of one width; in residual ones a way leads around each two after the first two."""

    def block(inputs: int = WIDTH) -> Block:
        return Block(nn.Linear(inputs, WIDTH), layer(WIDTH), "before")

    first: list[nn.Module] = [nn.Flatten(), block(int(np.prod(images.shape))), block()]
    if residual:
        first += [Residual(block(), block()) for _ in range(depth // 2 - 1)]
    else:
        first += [block() for _ in range(depth - 2)]
    network = Network(*first, nn.Linear(WIDTH, len(images.classes)))
    initialize(network, seed)
    return network


def measure(setting: Setting, seed: int) -> Observation:
    """Train plain and residual networks of every depth, with and without."""
    images = setting.images
    steps = setting.steps(quick=45, full=150, large=4000)
    depths = setting.pick(quick=(8, 56), full=(8, 20, 32, 56), large=(8, 20, 32, 56))
    reached: dict[tuple[str, int], float] = {}
    found = Observation(curves={"accuracy": {}})
    for name, layer, residual in (
        ("plain, none", identity, False),
        ("plain, batch", evenorm.BatchNorm1d, False),
        ("residual, none", identity, True),
        ("residual, batch", evenorm.BatchNorm1d, True),
    ):
        for depth in depths:

            def start(depth: int = depth, layer: Layer = layer, residual: bool = residual) -> Network:
                return build(images, depth, layer, residual, seed)

            best = lowest(attempts(start, images, RATES, steps=steps, seed=seed))
            reached[name, depth] = accuracy(best.network, images)
            found.figures[f"rate, {name}, {depth} layers"] = best.rate
        found.curves["accuracy"][name] = (depths, [reached[name, depth] for depth in depths])
    deep, shallow = depths[-1], depths[0]
    found.effects["plain"] = reached["plain, batch", deep] - reached["plain, none", deep]
    found.effects["residual"] = reached["residual, batch", deep] - reached["residual, none", deep]
    found.effects["degradation"] = reached["plain, batch", shallow] - reached["plain, batch", deep]
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization make deep networks trainable?",
    protocol=(
        "8 to 56 hidden layers (quick: these two alone) of 32 ReLU units on images, He's start, plain and with a way "
        "around every two layers, with batch normalization before each activation and without any; batches of 64, "
        "plain stochastic gradient descent at the better of the rates 0.01 and 0.1 by training loss. The budget of "
        "steps is the same for all and small: what is compared is how far each gets in it."
    ),
    claims=(
        Claim(
            "plain",
            "Batch normalization makes very deep architectures trainable.",
            "Sharma, “Batch and Layer Normalization” (2026), Advantages of Batch Normalization",
            "held-out accuracy of the plain network of 56 layers with, minus that without",
            Rule(holds=10.0, reverses=-10.0),
            unit="points",
        ),
        Claim(
            "residual",
            "Residual networks would not work without it.",
            "“Batch Normalization” (Concept Lab), Why It Matters for Modern Models; “nearly impossible to train”: "
            "Sharma (2026), Training Deep Residual Networks",
            "held-out accuracy of the residual network of 56 layers with, minus that without; it would not work where "
            "it lost half of all images, and works where it loses 5 points",
            Rule(holds=50.0, reverses=5.0),
            unit="points",
        ),
        Claim(
            "degradation",
            "Batch normalization alone is not enough: plain networks get worse with depth all the same.",
            "He et al., “Deep Residual Learning” (2016), section 1 and figure 1",
            "held-out accuracy of the plain network with batch normalization, 8 layers minus 56",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
    ),
    changes=(
        "More steps let slow networks catch up. A start made for depth (Fixup, a zero factor on each branch, "
        "orthogonal weights) trains deep networks without any normalization."
    ),
    measure=measure,
    plots=(Plot("accuracy", "Held-out accuracy by depth", "hidden layers", "held-out images right, %"),),
)

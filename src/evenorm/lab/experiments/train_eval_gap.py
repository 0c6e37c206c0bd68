"""How much do training and evaluation mode disagree?"""

from __future__ import annotations

import numpy as np
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, Probe, descent, fit
from evenorm.lab.networks import perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, disagreement, stream

SIZES = (2, 4, 8, 16, 32, 64, 128)
BATCH = 64
RATE = 0.1


class Gap(Probe):
    """Takes the share of held-out images whose class depends on the mode, at some steps."""

    def __init__(self, setting: Setting, at: set[int]) -> None:
        self.images, self.at = setting.images, at
        self.steps: list[int] = []
        self.shares: list[float] = []

    def due(self, step: int) -> bool:
        """After how many updates."""
        return step + 1 in self.at

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take it in batches of the training size."""
        self.steps.append(step + 1)
        self.shares.append(100 * disagreement(network, self.images, BATCH))


def measure(setting: Setting, seed: int) -> Observation:
    """Train, and hold the modes against each other on the way and at the end."""
    images = setting.images
    steps = setting.steps(quick=400, full=1000, large=10000)
    found = Observation()
    ends, ways = {}, {}
    for name, layer in {"batch": evenorm.BatchNorm1d, "layer": evenorm.LayerNorm}.items():
        network = perceptron(int(np.prod(images.shape)), (100,) * 3, len(images.classes), layer, seed=seed)
        gap = Gap(setting, {1, 2, 5, 10, 20, 50, 100, 200, steps})
        fit(network, stream(images, Schedule(BATCH, steps, RATE, seed)), descent(RATE), probes=[gap])
        ends[name] = [100 * disagreement(network, images, size) for size in SIZES]
        ways[name] = gap.shares
        found.curves.setdefault("size", {})[name] = (SIZES, ends[name])
        found.curves.setdefault("updates", {})[name] = (gap.steps, gap.shares)
    found.effects["erratic"] = ends["batch"][SIZES.index(4)]
    found.effects["shrinks"] = ends["batch"][SIZES.index(4)] - ends["batch"][SIZES.index(64)]
    found.effects["layer"] = max(ends["layer"] + ways["layer"])
    found.effects["early"] = max(ways["batch"], default=np.nan) - ends["batch"][SIZES.index(BATCH)]
    return found


EXPERIMENT = Experiment(
    question="How much do training and evaluation mode disagree?",
    protocol=(
        "Three hidden layers of 100 ReLU units on images, normalized before each ReLU, batches of 64, plain stochastic "
        "gradient descent at rate 0.1, running averages of momentum 0.1. The share of held-out images whose class "
        "changes when the network is put back into training mode: at the end by batch size, and at the training's "
        "batch size by number of updates."
    ),
    claims=(
        Claim(
            "erratic",
            "A network left in training mode gives erratic outputs with small batches.",
            "“Batch Normalization”, Training vs. Inference",
            "images whose class changes, in batches of 4",
            Rule(holds=5.0, reverses=0.5),
            unit="%",
        ),
        Claim(
            "shrinks",
            "The gap is larger the smaller the batch.",
            "“Batch Normalization”, Training vs. Inference; “Batch normalisation”, Limitations",
            "images whose class changes in batches of 4, minus those in batches of 64",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "layer",
            "Layer normalization has no gap between training and inference.",
            "Sharma, “Batch and Layer Normalization” (2026), Layer Normalization",
            "the greatest share of images whose class changes, over batch sizes and updates",
            Rule(holds=0.01, reverses=5.0),
            unit="%",
        ),
        Claim(
            "early",
            "The running averages lag behind: after few updates the gap is larger than at the end.",
            "“Batch Normalization”, Training vs. Inference: running averages stand in for the batch's",
            "the greatest share on the way, minus the share at the end, in batches of 64",
            Rule(holds=5.0, reverses=0.0),
            unit="points",
        ),
    ),
    changes="Convolutions on larger maps, whose statistics are over pixels too; a momentum nearer to 1; recalibration.",
    measure=measure,
    plots=(
        Plot("size", "At the end, by batch size in training mode", "batch size", "classes changed, %", logarithmic="x"),
        Plot("updates", "On the way, in batches of 64", "updates", "classes changed, %", logarithmic="x"),
    ),
)

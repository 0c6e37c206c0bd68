"""Does batch normalization make the scale of the initial weights matter less?"""

from __future__ import annotations

import numpy as np
import torch

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import HE, Network, identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, predictions, stream

# Times He's standard deviation, half decades.
GAINS = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-4, 5))
DEPTH = 5
RATE = 0.1
TARGET = 0.8


def measure(setting: Setting, seed: int) -> Observation:
    """Train from weights of every scale, and from zeros."""
    images = setting.images
    steps = setting.steps(quick=120, full=400, large=4000)

    def network(layer: Layer, gain: float) -> Network:
        inputs, classes = int(np.prod(images.shape)), len(images.classes)
        return perceptron(inputs, (100,) * DEPTH, classes, layer, gain=gain * HE, seed=seed)

    def accuracy(start: Network) -> float:
        fit(start, stream(images, Schedule(64, steps, RATE, seed)), descent(RATE))
        return float(np.mean(predictions(start, images, images.test_pixels) == images.test_labels))

    found = Observation()
    decades = {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        reached = [accuracy(network(layer, gain)) for gain in GAINS]
        found.curves.setdefault("accuracy", {})[name] = (GAINS, [100 * share for share in reached])
        # Each gain stands for the half decade around it.
        decades[name] = sum(share >= TARGET for share in reached) / 2
        found.figures[f"decades that train, {name}"] = decades[name]
    found.effects["decades"] = decades["batch"] - decades["none"]
    zero = network(evenorm.BatchNorm1d, 1.0)
    with torch.no_grad():
        for _, block in zero.hidden():
            block.linear.get_parameter("weight").zero_()
    guessing = float(np.bincount(images.test_labels).max()) / len(images.test_labels)
    found.effects["zeros"] = 100 * (accuracy(zero) - guessing)
    found.figures["guessing, %"] = 100 * guessing
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization make the scale of the initial weights matter less?",
    protocol=(
        "Five hidden layers of 100 ReLU units on images, batches of 64, plain stochastic gradient descent at rate 0.1. "
        "Initial weights of He's standard deviation times 0.01 to 100, in half decades. A scale trains where 80 % of "
        "held-out images are right at the end. And all hidden weights zero, with batch normalization."
    ),
    claims=(
        Claim(
            "decades",
            "With batch normalization the scale of the initial weights matters less.",
            "“Batch Normalization”, Why It Matters; Sharma, “Batch and Layer Normalization” (2026), Advantages",
            "decades of scales that train with, minus decades without",
            Rule(holds=1.0, reverses=0.0),
            unit="decades",
        ),
        Claim(
            "zeros",
            "All-zero weights still fail with batch normalization.",
            "“Batch Normalization”, Common Misconceptions",
            "held-out accuracy from zero hidden weights, above that of naming the most frequent class",
            Rule(holds=5.0, reverses=50.0),
            unit="points",
        ),
    ),
    changes=(
        "More steps: behind batch normalization large weights turn the more slowly the larger they are, so that the "
        "upper end of the scales is a matter of steps and rate, and not of divergence."
    ),
    measure=measure,
    plots=(
        Plot(
            "accuracy", "Held-out accuracy by scale of the start", "times He's standard deviation", "%", logarithmic="x"
        ),
    ),
)

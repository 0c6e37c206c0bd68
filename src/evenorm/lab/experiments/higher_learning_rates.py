"""How much larger a learning rate does batch normalization allow?"""

from __future__ import annotations

import math

import numpy as np

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, stream

# Half decades from 0.001 to 100.
RATES = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-6, 5))
WIDTHS = (100,) * 5
# A rate trains where the last quarter of the losses lies below half of what guessing costs.
SHARE_OF_GUESSING = 0.5


def measure(setting: Setting, seed: int) -> Observation:
    """Find the largest rate of the grid that trains, with and without."""
    images = setting.images
    steps = setting.steps(quick=80, full=240, large=2000)
    ceiling = SHARE_OF_GUESSING * math.log(len(images.classes))
    found = Observation()
    largest = {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        losses = []
        for rate in RATES:
            network = perceptron(int(np.prod(images.shape)), WIDTHS, len(images.classes), layer, seed=seed)
            losses.append(fit(network, stream(images, Schedule(64, steps, rate, seed)), descent(rate)).last_loss())
        trains = [rate for rate, loss in zip(RATES, losses, strict=True) if loss < ceiling]
        largest[name] = max(trains, default=math.nan)
        found.figures[f"largest rate that trains, {name}"] = largest[name]
        shown = [min(loss, 2 * math.log(len(images.classes))) for loss in losses]
        found.curves.setdefault("loss", {})[name] = (RATES, shown)
    ratio = largest["batch"] / largest["none"]
    if math.isfinite(ratio):
        found.effects = {"tenfold": ratio, "larger": ratio}
    else:
        found.reasons = dict.fromkeys(("tenfold", "larger"), "no rate of the grid trains in so few steps")
    return found


EXPERIMENT = Experiment(
    question="How much larger a learning rate does batch normalization allow?",
    protocol=(
        "Five hidden layers of 100 ReLU units on images, He's start, batches of 64, plain stochastic gradient descent "
        "at a constant rate: half decades from 0.001 to 100. A rate trains where the mean loss of the last quarter of "
        "the steps is below half of ln(classes). If 100 trains too, the ratio is a lower bound."
    ),
    claims=(
        Claim(
            "tenfold",
            "Batch normalization allows learning rates 10 to 100 times as large.",
            "Sharma, “Batch and Layer Normalization” (2026), Higher Learning Rates; “10x larger”: “Batch "
            "Normalization”, Why It Matters",
            "largest rate that trains with, divided by the largest without",
            Rule(holds=10.0, reverses=1.0),
        ),
        Claim(
            "larger",
            "Batch normalization allows larger learning rates.",
            "Ioffe & Szegedy (2015), section 3.3",
            "largest rate that trains with, divided by the largest without",
            Rule(holds=1.5, reverses=1.0),
        ),
    ),
    changes=(
        "An optimizer that divides the gradient by its size (Adam) levels much of it; a start worse than He's widens "
        "it. The grid's steps of 3.2 are the resolution."
    ),
    measure=measure,
    plots=(
        Plot(
            "loss",
            "Training loss at the end, by learning rate",
            "learning rate",
            "nats, cut at twice guessing",
            logarithmic="x",
        ),
    ),
)

"""Does batch normalization keep the inputs of a layer stable while it trains?"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.shift import PERCENTILES, GradientChange, LayerInputs
from evenorm.lab.training import Schedule, even_sample, stream, tensors

WIDTHS = (100, 100, 100)
RATE = 1.0
LAST = "hidden 3"


def measure(setting: Setting, seed: int) -> Observation:
    """Train the network of figure 1 both ways and follow the inputs of its last sigmoid."""
    images = setting.images
    steps = setting.steps(quick=600, full=2000, large=20000)
    some = even_sample(len(images.test_labels), 256)
    x, _ = tensors(images, images.test_pixels[some], images.test_labels[some])
    found = Observation()
    drifts, changes = {}, {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        network = perceptron(
            int(np.prod(images.shape)), WIDTHS, len(images.classes), layer, activation=nn.Sigmoid, gain=1.0, seed=seed
        )
        inputs, change = LayerInputs(x, max(1, steps // 60)), GradientChange(max(1, steps // 30))
        fit(network, stream(images, Schedule(60, steps, RATE, seed)), descent(RATE), probes=[inputs, change])
        drifts[name], changes[name] = inputs.drift(LAST), change.mean
        # One unit, as in the figure.
        unit = torch.stack([percentiles[:, 0] for percentiles in inputs.seen[LAST]]).T
        for percent, values in zip(PERCENTILES, unit.tolist(), strict=True):
            found.curves.setdefault("unit", {})[f"{name}, {percent} %"] = (inputs.steps, values)
        found.curves.setdefault("change", {})[name] = (change.steps, change.changes[LAST])
        found.figures |= {f"drift, {name}": drifts[name], f"gradient change, {name}": changes[name]}
    found.effects["stable"] = drifts["none"] / drifts["batch"] if drifts["batch"] else np.nan
    found.effects["gradient"] = changes["none"] / changes["batch"] if changes["batch"] else np.nan
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization keep the inputs of a layer stable while it trains?",
    protocol=(
        "Three hidden layers of 100 sigmoid units on images, batches of 60, plain stochastic gradient descent at rate "
        "1, with and without batch normalization before each sigmoid. Drift: how far the 15th, 50th and 85th "
        "percentile of what enters the last sigmoid move between sixty looks, on the same 256 images, in widths of the "
        "distribution, over all units. Gradient change: how much of a layer's gradient the update of the layers "
        "before it replaces, relative to the gradient, over layers and thirty looks."
    ),
    claims=(
        Claim(
            "stable",
            "With batch normalization the distribution of a layer's inputs is more stable.",
            "Ioffe & Szegedy (2015), figure 1b and c",
            "drift without, divided by drift with",
            Rule(holds=1.2, reverses=1.0),
        ),
        Claim(
            "gradient",
            "Batch normalization reduces internal covariate shift, measured as the change of gradients.",
            "“Batch normalisation”, What It Does; disputed by Santurkar et al. (2018), figure 2",
            "gradient change without, divided by gradient change with",
            Rule(holds=1.2, reverses=1.0),
        ),
    ),
    changes=(
        "A lower rate makes every drift smaller and need not make the ratio smaller. Measured on one unit, as the "
        "figure does, the outcome depends on the unit."
    ),
    measure=measure,
    plots=(
        Plot("unit", "What enters one unit of the last sigmoid layer", "step", "15th, 50th and 85th percentile"),
        Plot("change", "Gradient change of the last hidden layer", "step", "relative change", logarithmic="y"),
    ),
)

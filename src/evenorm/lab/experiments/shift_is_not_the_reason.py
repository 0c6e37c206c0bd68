"""Does batch normalization still help where its outputs are made to shift?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.shift import LayerInputs
from evenorm.lab.training import Schedule, Watch, even_sample, stream, tensors

WIDTHS = (100, 100, 100)
RATE = 1.0
TARGET = 0.9
LAST = "hidden 3"


class NoisyBatchNorm(nn.Module):
    """Batch normalization whose output gets a new random mean and scale for each unit at each step of training.

    Source:
        Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018), section 2.1 and appendix A.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = evenorm.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to the same."""
        y = self.layer(x)
        if not self.training:
            return y
        shift = torch.empty_like(y[:1]).uniform_(-0.5, 0.5)
        scale = torch.empty_like(y[:1]).uniform_(1.0, 1.25)
        shifts = shift + torch.empty_like(y).uniform_(-0.1, 0.1)
        scales = scale + 0.1 * torch.randn_like(y)
        return y * scales + shifts


LAYERS = {"none": identity, "batch": evenorm.BatchNorm1d, "noisy batch": NoisyBatchNorm}


def measure(setting: Setting, seed: int) -> Observation:
    """Train without, with, and with noise that shifts every layer's inputs from step to step."""
    images = setting.images
    steps = setting.steps(quick=600, full=1500, large=15000)
    some = even_sample(len(images.test_labels), 256)
    x, _ = tensors(images, images.test_pixels[some], images.test_labels[some])
    found = Observation()
    reached, drifts = {}, {}
    for name, layer in LAYERS.items():
        network = perceptron(
            int(np.prod(images.shape)), WIDTHS, len(images.classes), layer, activation=nn.Sigmoid, gain=1.0, seed=seed
        )
        watch, inputs = Watch(images, max(1, steps // 100)), LayerInputs(x, max(1, steps // 60))
        fit(network, stream(images, Schedule(60, steps, RATE, seed)), descent(RATE), probes=[watch, inputs])
        reached[name], drifts[name] = watch.reached(TARGET) or steps, inputs.drift(LAST)
        found.figures |= {f"steps to 90 %, {name}": reached[name], f"drift, {name}": drifts[name]}
        found.curves.setdefault("accuracy", {})[name] = (watch.steps, [100 * share for share in watch.shares])
    found.effects["faster"] = reached["none"] / reached["noisy batch"]
    found.effects["unstable"] = drifts["noisy batch"] / drifts["none"] if drifts["none"] else np.nan
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization still help where its outputs are made to shift?",
    protocol=(
        "Three hidden layers of 100 sigmoid units on images, batches of 60, plain stochastic gradient descent at rate "
        "1: without normalization, with batch normalization, and with batch normalization whose outputs get another "
        "random mean (−0.5 to 0.5) and scale (1 to 1.25) for each unit at each step. Steps to 90 % of held-out images "
        "right, where a run that never gets there counts with all its steps; and the drift of the last sigmoid's "
        "inputs, as in stable-inputs."
    ),
    claims=(
        Claim(
            "faster",
            "With shift put in on purpose, batch normalization still trains faster than no normalization.",
            "Santurkar et al. (2018), figure 2; “Batch Normalization”, Common Misconceptions",
            "steps to 90 % without normalization, divided by steps with noisy batch normalization",
            Rule(holds=1.2, reverses=1.0),
        ),
        Claim(
            "unstable",
            "With that noise the inputs are less stable than without normalization.",
            "Santurkar et al. (2018), figure 2",
            "drift with noisy batch normalization, divided by drift without normalization",
            Rule(holds=1.2, reverses=1.0),
        ),
    ),
    changes="Much more noise: where the signal drowns, nothing trains.",
    measure=measure,
    plots=(Plot("accuracy", "With shift put in on purpose", "step", "held-out images right, %"),),
)

"""Does a network learn faster from standardized, and from decorrelated inputs?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evenorm.lab.data import Images
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.rates import attempts, soonest
from evenorm.lab.setting import Setting

WIDTHS = (64,)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TARGET = 0.9
# Added to every variance, as a share of the mean one: pixels that never change stay silent.
RIDGE = 0.01


class Linearly(nn.Module):
    """A fixed linear map of the flattened input: (x − mean) · map."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: NDArray[np.float64], matrix: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("matrix", torch.from_numpy(matrix).float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) to (N, D)."""
        return (x.flatten(1) - self.mean) @ self.matrix


def maps(images: Images) -> dict[str, Linearly]:
    """Return the three treatments of the pixels, made from the training images."""
    center, deviation = images.scale
    x = (images.train_pixels.reshape(len(images.train_pixels), -1) - center) / deviation
    mean, covariance = x.mean(0), np.cov(x, rowvar=False, bias=True)
    ridge = RIDGE * float(np.trace(covariance)) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    # What a network sees has variance near 1 in both; raw pixels are what the file holds.
    raw = np.eye(len(mean)) * deviation
    return {
        "raw": Linearly(np.full_like(mean, -center / deviation), raw),
        "standardized": Linearly(mean, np.diag((np.diag(covariance) + ridge) ** -0.5)),
        "decorrelated": Linearly(mean, vectors @ np.diag((values.clip(0) + ridge) ** -0.5) @ vectors.T),
    }


def measure(setting: Setting, seed: int) -> Observation:
    """Count the steps to the target from each kind of input, at the rate that gets there first."""
    images = setting.images
    steps = setting.steps(quick=400, full=1500, large=20000)
    treatments = maps(images)
    found = Observation(curves={"accuracy": {}})
    reached = {}
    for name, treatment in treatments.items():

        def start(treatment: Linearly = treatment) -> nn.Module:
            inputs, classes = int(np.prod(images.shape)), len(images.classes)
            return nn.Sequential(treatment, perceptron(inputs, WIDTHS, classes, identity, seed=seed))

        best = soonest(attempts(start, images, RATES, steps=steps, seed=seed, looks=100), TARGET)
        reached[name] = best.reached(TARGET)
        found.figures |= {f"steps to 90 %, {name}": reached[name], f"rate, {name}": best.rate}
        found.curves["accuracy"][name] = best.curve
    found.effects["standardized"] = reached["raw"] / reached["standardized"]
    found.effects["decorrelated"] = reached["standardized"] / reached["decorrelated"]
    return found


EXPERIMENT = Experiment(
    question="Does a network learn faster from standardized, and from decorrelated inputs?",
    protocol=(
        "One hidden layer of 64 ReLU units without normalization, batches of 64, plain stochastic gradient descent at "
        "the one of seven rates from 0.001 to 1 that first gets 90 % of held-out images right. The pixels come raw "
        "(the bytes of the file, never negative), standardized each over the training images, and decorrelated: "
        "multiplied by the inverse root of their covariance. To each variance a hundredth of the mean one is added."
    ),
    claims=(
        Claim(
            "standardized",
            "A network converges faster if its inputs have zero mean and unit variance.",
            "LeCun et al., “Efficient BackProp” (1998), section 4.3; “Layer vs Batch Norm”, The Batch Normalization "
            "Solution",
            "steps to 90 % from raw pixels, divided by steps from standardized ones",
            Rule(holds=1.2, reverses=1 / 1.2),
        ),
        Claim(
            "decorrelated",
            "It converges faster still if they are decorrelated too.",
            "LeCun et al. (1998), section 4.3; Ioffe & Szegedy (2015), section 2",
            "steps to 90 % from standardized pixels, divided by steps from decorrelated ones",
            Rule(holds=1.2, reverses=1 / 1.2),
        ),
    ),
    changes=(
        "Decorrelating lifts the directions of little variance, in which the noise of images lies: held-out accuracy, "
        "unlike the training loss, may suffer. An optimizer that divides by the gradient's size levels unlike scales. "
        "With other images the share that is added to each variance matters."
    ),
    measure=measure,
    plots=(Plot("accuracy", "Held-out accuracy, each at its best rate", "step", "held-out images right, %"),),
)

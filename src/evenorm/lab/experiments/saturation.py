"""Does batch normalization keep units out of saturation?"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, Probe, descent, fit
from evenorm.lab.networks import Network, identity, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, Watch, stream, tensors

WIDTHS = (100, 100, 100)
# On weights of deviation 1/√inputs.
GAINS = (1.0, 3.0, 10.0)
RATE = 0.3
TARGET = 0.9
# Beyond here tanh's derivative is below 0.1.
SATURATED = 1.82
LOOKS = 24


class Saturation(Probe):
    """Takes the share of hidden units that are saturated, over the same images each time, in training mode."""

    def __init__(self, x: Tensor, every: int) -> None:
        self.x, self.every = x, every
        self.steps: list[int] = []
        self.shares: list[float] = []

    def due(self, step: int) -> bool:
        """Every so many steps, the first among them."""
        return step % self.every == 0

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take it."""
        assert isinstance(network, Network)
        seen: list[Tensor] = []
        handles = [
            block.activation.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs() > SATURATED))
            for _, block in network.hidden()
        ]
        with torch.no_grad():
            network(self.x)
        for handle in handles:
            handle.remove()
        self.steps.append(step + 1)
        self.shares.append(100 * float(torch.cat(seen, 1).float().mean()))


def measure(setting: Setting, seed: int) -> Observation:
    """Train tanh networks from weights of three scales, with and without."""
    images = setting.images
    steps = setting.steps(quick=400, full=2000, large=20000)
    x, _ = tensors(images, images.train_pixels[:256], images.train_labels[:256])
    found = Observation(curves={"saturated": {}, "accuracy": {}})
    shares: dict[str, list[float]] = {"none": [], "batch": []}
    reached: dict[str, int] = {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        for gain in GAINS:
            inputs, classes = int(np.prod(images.shape)), len(images.classes)
            network = perceptron(inputs, WIDTHS, classes, layer, activation=nn.Tanh, gain=gain, seed=seed)
            saturation, watch = Saturation(x, max(1, steps // LOOKS)), Watch(images, max(1, steps // 100))
            fit(network, stream(images, Schedule(64, steps, RATE, seed)), descent(RATE), probes=[saturation, watch])
            curve = f"{name}, gain {gain:g}"
            found.curves["saturated"][curve] = (saturation.steps, saturation.shares)
            found.curves["accuracy"][curve] = (watch.steps, [100 * share for share in watch.shares])
            shares[name].append(fmean(saturation.shares))
            reached[curve] = watch.reached(TARGET) or steps
            found.figures[f"steps to 90 %, {curve}"] = reached[curve]
    found.effects["kept"] = fmean(shares["none"]) - fmean(shares["batch"])
    found.effects["started"] = shares["none"][0] - shares["batch"][0]
    found.effects["stuck"] = reached["none, gain 10"] / reached["batch, gain 10"]
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization keep units out of saturation?",
    protocol=(
        "Three hidden layers of 100 tanh units on images, batches of 64, plain stochastic gradient descent at rate "
        "0.3, with batch normalization before each tanh and without any; initial weights of deviation 1, 3 and 10 over "
        "the root of the inputs. A unit is saturated for an image where the derivative of its tanh is below 0.1, which "
        "is beyond ±1.82; the share is over units and images, mean over the training."
    ),
    claims=(
        Claim(
            "kept",
            "Batch normalization keeps pre-activations in the range where the activation does not saturate.",
            "“Batch Normalization”, Where to Place BatchNorm; Ioffe & Szegedy (2015), section 2",
            "share of saturated units without, minus that with, mean over the three scales of weights",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "started",
            "It does so too where the weights start at a scale that suits tanh.",
            "the same sources, which name no scale",
            "share of saturated units without, minus that with, weights of deviation 1 over the root of the inputs",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "stuck",
            "The optimizer does not get stuck in the saturated regime, and training accelerates.",
            "“Layer vs Batch Norm”, The Batch Normalization Solution; Ioffe & Szegedy (2015), section 2",
            "steps to 90 % without, divided by steps with, weights of deviation 10; all steps where it is not reached",
            Rule(holds=2.0, reverses=0.5),
        ),
    ),
    changes=(
        "Batch normalization lets γ grow: what is normalized to a variance of 1 at the start may be widened by "
        "training. A normal variable of variance 1 lies beyond ±1.82 in 7 % of cases, so some saturation is there by "
        "design. ReLU saturates on one side only."
    ),
    measure=measure,
    plots=(
        Plot("saturated", "Saturated units", "step", "units and images, %"),
        Plot("accuracy", "Held-out accuracy", "step", "held-out images right, %"),
    ),
)

"""Is a bias before a normalization redundant?"""

from __future__ import annotations

import numpy as np
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, Probe, descent, fit
from evenorm.lab.networks import Network, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, predictions, stream

RATE = 0.1


class BiasGradients(Probe):
    """Reads how large the gradient of a linear layer's bias is beside that of the normalizer's β."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Read all hidden layers as one."""
        assert isinstance(network, Network)
        squares = {"bias": 0.0, "beta": 0.0}
        for _, block in network.hidden():
            for name, module in (("bias", block.linear), ("beta", block.normalizer)):
                gradient = module.get_parameter("bias").grad
                assert gradient is not None
                squares[name] += float(gradient.double().square().sum())
        self.ratios.append((squares["bias"] / squares["beta"]) ** 0.5)


def measure(setting: Setting, seed: int) -> Observation:
    """Train with the bias and without, and compare."""
    images = setting.images
    steps = setting.steps(quick=150, full=500, large=5000)
    found = Observation()
    shares = {}
    for name, layer in {"batch": evenorm.BatchNorm1d, "layer": evenorm.LayerNorm}.items():
        classes = []
        for bias in (True, False):
            inputs = int(np.prod(images.shape))
            network = perceptron(inputs, (100,) * 3, len(images.classes), layer, bias=bias, seed=seed)
            seen = BiasGradients()
            batches = stream(images, Schedule(64, steps, RATE, seed))
            fit(network, batches, descent(RATE), probes=[seen] if bias else [])
            classes.append(predictions(network, images, images.test_pixels))
            if bias:
                found.figures[f"bias gradient beside β's, {name}"] = max(seen.ratios, default=np.nan)
                found.curves.setdefault("ratio", {})[name] = (list(range(1, len(seen.ratios) + 1)), seen.ratios)
        shares[name] = 100 * float(np.mean(classes[0] != classes[1]))
        found.figures[f"classes changed, %, {name}"] = shares[name]
    found.effects["gradient"] = found.figures["bias gradient beside β's, batch"]
    found.effects["outcome"] = shares["batch"]
    found.effects["layer"] = found.figures["bias gradient beside β's, layer"]
    return found


EXPERIMENT = Experiment(
    question="Is the bias of a linear layer redundant before a normalization?",
    protocol=(
        "Three hidden layers of 100 ReLU units on images, batches of 64, plain stochastic gradient descent at rate "
        "0.1, batch or layer normalization before each ReLU, with and without a bias in each linear layer. The length "
        "of the gradient of all biases, beside that of all β, at every step; and how many held-out images get another "
        "class."
    ),
    claims=(
        Claim(
            "gradient",
            "A bias before batch normalization is redundant: it learns nothing.",
            "Ioffe & Szegedy (2015), section 3.2; “Batch Normalization”, Key Technical Details",
            "length of the biases' gradient, divided by that of β, the greatest over the steps",
            Rule(holds=1e-3, reverses=0.1),
            unit="of β's",
        ),
        Claim(
            "outcome",
            "Without it the trained network is the same.",
            "Ioffe & Szegedy (2015), section 3.2",
            "held-out images whose class changes when the network is trained without the biases",
            Rule(holds=1.0, reverses=10.0),
            unit="%",
        ),
        Claim(
            "layer",
            "Before layer normalization it is not redundant.",
            "follows from the formula: the mean over features leaves differences between features standing",
            "length of the biases' gradient, divided by that of β, the greatest over the steps",
            Rule(holds=0.1, reverses=1e-3),
            unit="of β's",
        ),
    ),
    changes="Nothing but rounding, before batch normalization in training mode: adding a constant to a channel changes "
    "its mean, which is subtracted. With frozen statistics the bias is no longer redundant.",
    measure=measure,
    plots=(
        Plot(
            "ratio",
            "Gradient of the biases beside that of β",
            "step",
            "length of the biases', over β's",
            logarithmic="y",
        ),
    ),
)

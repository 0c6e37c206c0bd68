"""Does batch normalization make the loss smoother?"""

from __future__ import annotations

import numpy as np

from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.interval import center
from evenorm.lab.landscape import Landscape
from evenorm.lab.networks import build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, stream

RATE = 0.1
# Half to four times the training's own step, as in the article.
LENGTHS = tuple(RATE * factor for factor in (0.5, 1.0, 2.0, 3.0, 4.0))


def measure(setting: Setting, seed: int) -> Observation:
    """Train both ways at one rate and walk along the gradients."""
    images = setting.images
    steps = setting.steps(quick=300, full=1000, large=10000)
    found = Observation()
    sizes: dict[str, dict[str, float]] = {}
    for name in ("none", "batch"):
        network = build("cnn", images.shape, len(images.classes), NORMALIZERS[name], seed=seed)
        seen = Landscape(max(1, steps // 30), LENGTHS)
        fit(network, stream(images, Schedule(64, steps, RATE, seed)), descent(RATE), probes=[seen])
        measures = {"range": seen.ranges, "change": seen.changes, "smoothness": seen.smoothness}
        # The geometric mean: late in a training everything is smaller.
        sizes[name] = {key: center(np.maximum(values, 1e-12).tolist(), ratio=True) for key, values in measures.items()}
        for key, values in measures.items():
            found.curves.setdefault(key, {})[name] = (seen.steps, values)
    found.effects = {key: sizes["none"][key] / sizes["batch"][key] for key in ("smoothness", "change", "range")}
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization make the loss smoother along the gradient?",
    protocol=(
        "A convolutional network of four layers on images, with and without batch normalization before each ReLU, "
        "batches of 64, plain stochastic gradient descent at rate 0.1 for both. At thirty steps a walk of 0.5 to 4 "
        "times the update along the negative gradient, on the step's batch: the range of the loss, the greatest change "
        "of the gradient (predictiveness), and the greatest change per distance (effective β-smoothness); geometric "
        "means over the steps."
    ),
    claims=(
        Claim(
            "smoothness",
            "Batch normalization makes the loss smoother: its gradient changes less per distance.",
            "Santurkar et al. (2018), figure 4c; “Batch Normalization”, Internal Covariate Shift",
            "effective β without, divided by effective β with",
            Rule(holds=1.2, reverses=1.0),
        ),
        Claim(
            "change",
            "Batch normalization makes gradients more predictive.",
            "Santurkar et al. (2018), figure 4b",
            "greatest change of the gradient along the step without, divided by that with",
            Rule(holds=1.2, reverses=1.0),
        ),
        Claim(
            "range",
            "With batch normalization the loss varies less along the gradient.",
            "Santurkar et al. (2018), figure 4a",
            "range of the loss along the step without, divided by the range with",
            Rule(holds=1.2, reverses=1.0),
        ),
    ),
    changes=(
        "The rate and the start: where the network without normalization has hardly begun to learn, its loss is flat. "
        "Behind batch normalization the loss does not depend on the scale of the weights, so distances in weights are "
        "not the same thing in both networks."
    ),
    measure=measure,
    plots=(
        Plot("smoothness", "Effective β", "step", "change of the gradient per distance", logarithmic="y"),
        Plot("change", "Predictiveness of the gradient", "step", "change of the gradient", logarithmic="y"),
        Plot("range", "Range of the loss along the step", "step", "nats", logarithmic="y"),
    ),
)

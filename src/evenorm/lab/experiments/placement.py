"""Before or after the activation?"""

from __future__ import annotations

import numpy as np

from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, falling, fit
from evenorm.lab.networks import PLACEMENTS, build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, Watch, predictions, stream

RATES = (0.1, 0.5)


def measure(setting: Setting, seed: int) -> Observation:
    """Train the same network with batch normalization in both places."""
    images = setting.images
    steps = setting.steps(quick=300, full=900, large=6000)
    found = Observation()
    right = {}
    for placement in PLACEMENTS:
        losses, accuracies, watches = {}, {}, {}
        for rate in RATES:
            network = build("cnn", images.shape, len(images.classes), NORMALIZERS["batch"], placement, seed)
            watches[rate] = Watch(images, max(1, steps // 20))
            batches = stream(images, Schedule(64, steps, rate, seed))
            losses[rate] = fit(network, batches, descent(rate), pace=falling(steps), probes=[watches[rate]]).last_loss()
            accuracies[rate] = np.mean(predictions(network, images, images.test_pixels) == images.test_labels)
        # The rate is chosen by the training loss: held-out images have no part in it.
        best = min(RATES, key=lambda rate: losses[rate])
        right[placement] = 100 * float(accuracies[best])
        found.figures |= {f"held-out accuracy, %, {placement}": right[placement], f"rate, {placement}": best}
        found.curves.setdefault("accuracy", {})[f"{placement} the activation"] = (
            watches[best].steps,
            [100 * share for share in watches[best].shares],
        )
    found.effects["alike"] = abs(right["before"] - right["after"])
    found.effects["before"] = right["before"] - right["after"]
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization belong before or after the activation?",
    protocol=(
        "A convolutional network of four layers on images, batch normalization before or after each ReLU, batches of "
        "64, plain stochastic gradient descent at a rate that falls linearly from 0.1 or 0.5, the one with the lower "
        "training loss. Accuracy on held-out images."
    ),
    claims=(
        Claim(
            "alike",
            "Both places work equally well.",
            "“Batch Normalization”, Where to Place BatchNorm; Sharma, “Batch and Layer Normalization” (2026)",
            "distance of the two held-out accuracies",
            Rule(holds=2.0, reverses=10.0),
            unit="points",
        ),
        Claim(
            "before",
            "Before the activation is better.",
            "Sharma (2026), Key Takeaways: “typically before activation functions”",
            "held-out accuracy with it before, minus that with it after",
            Rule(holds=0.5, reverses=-0.5),
            unit="points",
        ),
    ),
    changes="Activations that saturate, and deep residual networks, where the place decides what the shortcut carries.",
    measure=measure,
    plots=(Plot("accuracy", "Held-out accuracy", "step", "images right, %"),),
)

"""Does the shift of layer inputs grow with depth?"""

from __future__ import annotations

import numpy as np

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.shift import LayerInputs
from evenorm.lab.training import Schedule, even_sample, stream, tensors

DEPTH = 8
RATE = 0.05


def measure(setting: Setting, seed: int) -> Observation:
    """Follow the inputs of every layer of a deep network, update by update."""
    images = setting.images
    steps = setting.steps(quick=100, full=300, large=3000)
    some = even_sample(len(images.test_labels), 256)
    x, _ = tensors(images, images.test_pixels[some], images.test_labels[some])
    found = Observation()
    drifts: dict[str, list[float]] = {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        network = perceptron(int(np.prod(images.shape)), (64,) * DEPTH, len(images.classes), layer, seed=seed)
        inputs = LayerInputs(x, every=2)
        fit(network, stream(images, Schedule(64, steps, RATE, seed)), descent(RATE), probes=[inputs])
        drifts[name] = [inputs.drift(layer) for layer, _ in network.hidden()]
        found.curves.setdefault("drift", {})[name] = (list(range(1, DEPTH + 1)), drifts[name])
    if drifts["none"][0] and drifts["batch"][-1]:
        found.effects["compounds"] = drifts["none"][-1] / drifts["none"][0]
        found.effects["stopped"] = drifts["none"][-1] / drifts["batch"][-1]
    else:
        found.reasons = dict.fromkeys(("compounds", "stopped"), "one look shows no drift")
    return found


EXPERIMENT = Experiment(
    question="Does the shift of layer inputs grow with depth?",
    protocol=(
        "Eight hidden layers of 64 ReLU units on images, batches of 64, plain stochastic gradient descent at rate "
        f"{RATE}, He's start, with and without batch normalization. Drift of a layer: how far the 15th, 50th and 85th "
        "percentile of what enters its activation function move in two updates, on the same 256 images, in widths of "
        "the distribution, over all units and updates."
    ),
    claims=(
        Claim(
            "compounds",
            "The shift compounds across layers and is more severe the deeper the layer.",
            "Sharma, “Batch and Layer Normalization” (2026), Mathematical Formulation",
            "drift of the last hidden layer, divided by that of the first, without normalization",
            Rule(holds=1.5, reverses=1.0),
        ),
        Claim(
            "stopped",
            "Batch normalization keeps the inputs of a deep layer more stable.",
            "Sharma (2026), The Internal Covariate Shift Problem",
            "drift of the last hidden layer without, divided by drift with",
            Rule(holds=1.2, reverses=1.0),
        ),
    ),
    changes="A start that does not keep the scale of activations the same in every layer, or units that saturate.",
    measure=measure,
    plots=(Plot("drift", "Drift by depth", "hidden layer", "drift in two updates, widths"),),
)

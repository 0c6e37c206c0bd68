"""Does the noise of batch statistics regularize?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, falling, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, predictions, stream, tensors

# Few, so that a network learns them by heart.
IMAGES = 200
BATCH = 20
RATE = 0.1
SIZES = (4, 8, 16, 32, 64)


def with_dropout(layer: Layer) -> Layer:
    """Return the layer and dropout of a quarter behind it."""
    return lambda size: nn.Sequential(layer(size), nn.Dropout(0.25))


LAYERS: dict[str, Layer] = {
    "none": identity,
    "batch": evenorm.BatchNorm1d,
    "layer": evenorm.LayerNorm,
    "dropout": with_dropout(identity),
    "batch + dropout": with_dropout(evenorm.BatchNorm1d),
}


def measure(setting: Setting, seed: int) -> Observation:
    """Train on few images until they are known by heart, and take the held-out error."""
    draw = np.random.default_rng(seed)
    whole = setting.images
    few = draw.permutation(len(whole.train_labels))[:IMAGES]
    images = replace(whole, train_pixels=whole.train_pixels[few], train_labels=whole.train_labels[few])
    steps = setting.steps(quick=700, full=2000, large=10000)
    found = Observation()
    errors = {}
    for name, layer in LAYERS.items():
        network = perceptron(int(np.prod(images.shape)), (100,) * 2, len(images.classes), layer, seed=seed)
        fit(network, stream(images, Schedule(BATCH, steps, RATE, seed)), descent(RATE), pace=falling(steps))
        errors[name] = 100 * float(np.mean(predictions(network, images, images.test_pixels) != images.test_labels))
        train = 100 * float(np.mean(predictions(network, images, images.train_pixels) != images.train_labels))
        found.figures |= {f"held-out error, %, {name}": errors[name], f"training error, %, {name}": train}
    found.curves["error"] = {"held-out": (list(errors), list(errors.values()))}
    found.effects["batch"] = errors["none"] - errors["batch"]
    found.effects["dropout"] = errors["dropout"] - errors["batch"]
    found.effects["layer"] = errors["layer"] - errors["batch"]
    noise = {size: statistics_noise(setting, size, seed) for size in SIZES}
    found.curves["noise"] = {"standard deviation of a batch's mean": (SIZES, list(noise.values()))}
    found.effects["noise"] = noise[SIZES[0]] / noise[SIZES[-1]]
    return found


def statistics_noise(setting: Setting, size: int, seed: int) -> float:
    """Return how much a batch's mean of a first-layer unit varies from batch to batch, in units of its σ."""
    images = setting.images
    network = perceptron(int(np.prod(images.shape)), (100,), len(images.classes), identity, seed=seed)
    x, _ = tensors(images, images.train_pixels, images.train_labels)
    with torch.no_grad():
        values = network[:1](x) @ next(network.hidden())[1].linear.weight.T
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(len(values), size=(400, size)))
    means = values[drawn].mean(1)
    return float((means.std(0) / values.std(0).clamp_min(1e-6)).mean())


EXPERIMENT = Experiment(
    question="Does the noise of batch statistics regularize?",
    protocol=(
        f"Two hidden layers of 100 ReLU units learn {IMAGES} images by heart, batches of {BATCH}, plain stochastic "
        "gradient descent at a rate that falls linearly from 0.1: without normalization, with batch or layer "
        "normalization, with dropout of a quarter, and with batch normalization and dropout. Error on held-out images. "
        "And how much the mean of a unit varies from batch to batch, by batch size."
    ),
    claims=(
        Claim(
            "batch",
            "Batch normalization regularizes: the held-out error is lower.",
            "Ioffe & Szegedy (2015), section 3.4; “Batch Normalization”, Key Technical Details",
            "held-out error without normalization, minus that with batch normalization",
            Rule(holds=1.0, reverses=-1.0),
            unit="points",
        ),
        Claim(
            "layer",
            "Layer normalization regularizes less than batch normalization.",
            "Sharma, “Batch and Layer Normalization” (2026), Limitations of Layer Normalization",
            "held-out error with layer normalization, minus that with batch normalization",
            Rule(holds=0.5, reverses=-0.5),
            unit="points",
        ),
        Claim(
            "dropout",
            "Batch normalization reduces the need for dropout.",
            "Ioffe & Szegedy (2015), section 3.4; Sharma (2026), Regularization Effect",
            "held-out error with dropout alone, minus that with batch normalization alone",
            Rule(holds=-0.5, reverses=-3.0),
            unit="points",
        ),
        Claim(
            "noise",
            "Larger batches make the noise of the statistics smaller.",
            "“Batch Normalization”, Key Technical Details",
            f"standard deviation of a batch's mean at batch size {SIZES[0]}, divided by that at {SIZES[-1]}",
            Rule(holds=2.0, reverses=1.0),
        ),
    ),
    changes="More images to learn from: then nothing overfits, and noise only disturbs. Convolutions, where batch "
    "statistics are over pixels too.",
    measure=measure,
    plots=(
        Plot("error", f"Held-out error after learning {IMAGES} images", "", "images wrong, %", kind="bars"),
        Plot("noise", "Noise of the mean by batch size", "batch size", "in units of σ", logarithmic="xy"),
    ),
)

"""What does the batch size do to each normalization?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, falling, fit
from evenorm.lab.networks import build
from evenorm.lab.normalizers import NORMALIZERS, Normalizer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, predictions, stream

# At batch size 64; as the square root of the batch size.
RATE = 0.4
GHOSTS = 8


def renormalized(steps: int) -> Callable[[int], nn.Module]:
    """Return batch renormalization whose clamps open in the course of so many steps."""
    ramp = evenorm.Ramp(steps // 5, 3 * steps // 5, 3 * steps // 5)
    return lambda channels: evenorm.BatchNorm2d(channels, statistics=evenorm.Renorm(schedule=ramp))


def rows(batch_size: int, steps: int) -> list[Normalizer]:
    """Return the normalizers of the figure; a ghost batch is an eighth of the batch, one image at least."""
    ghost = max(1, batch_size // GHOSTS)
    return [
        *(NORMALIZERS[name] for name in ("batch", "layer", "group", "instance")),
        Normalizer("renorm", "batch renormalization", maps=renormalized(steps)),
        Normalizer("ghost", "batch, in eighths", maps=lambda channels: evenorm.GhostBatchNorm2d(channels, ghost)),
    ]


def measure(setting: Setting, seed: int) -> Observation:
    """Train at every batch size and take the error."""
    images = setting.images
    sizes = setting.pick((2, 8, 64), (1, 2, 4, 8, 16, 64), (1, 2, 4, 8, 16, 32, 64))
    # Steps at a batch of one image; larger batches need fewer, though more images in all.
    length = setting.steps(quick=200, full=500, large=5000)
    errors: dict[str, list[float]] = {}
    for size in sizes:
        steps = max(1, round(length / size ** (1 / 3)))
        for row in rows(size, steps):
            network = build("cnn", images.shape, len(images.classes), row, seed=seed)
            schedule = Schedule(size, steps, RATE * (size / 64) ** 0.5, seed)
            fit(network, stream(images, schedule), descent(schedule.rate), pace=falling(steps))
            wrong = np.mean(predictions(network, images, images.test_pixels) != images.test_labels)
            errors.setdefault(row.name, []).append(100 * float(wrong))
    found = Observation()
    found.curves["error"] = {name: (sizes, values) for name, values in errors.items()}
    two, many = sizes.index(2), sizes.index(64)
    found.effects["small"] = errors["batch"][two] - errors["batch"][many]
    found.effects["group"] = errors["batch"][two] - errors["group"][two]
    found.effects["steady"] = errors["group"][two] - errors["group"][many]
    found.effects["renorm"] = errors["batch"][two] - errors["renorm"][two]
    return found


EXPERIMENT = Experiment(
    question="What does the batch size do to each normalization?",
    protocol=(
        "A convolutional network of four layers, normalized before each ReLU, is trained at every batch size: the "
        "number of steps falls with its third root, the rate grows with its square root from 0.4 at 64, and falls "
        "linearly during the run. Error on held-out images in evaluation mode. Ghost batches are eighths of the batch."
    ),
    claims=(
        Claim(
            "small",
            "Batch normalization does poorly with small batches.",
            "Wu & He (2018), figure 1; Sharma, “Batch and Layer Normalization” (2026), Limitations (below 16)",
            "held-out error at batch size 2, minus that at 64",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "group",
            "With small batches group normalization is better than batch normalization.",
            "Wu & He (2018), figure 1; “Batch Normalization”, Key Technical Details",
            "held-out error of batch normalization minus that of group normalization, at batch size 2",
            Rule(holds=1.0, reverses=-1.0),
            unit="points",
        ),
        Claim(
            "steady",
            "Group normalization is as good at small batches as at large ones.",
            "Wu & He (2018), figure 1",
            "held-out error of group normalization at batch size 2, minus that at 64",
            Rule(holds=1.0, reverses=10.0),
            unit="points",
        ),
        Claim(
            "renorm",
            "Batch renormalization mends batch normalization's small batches.",
            "Ioffe (2017), section 4.3",
            "held-out error of batch normalization minus that of batch renormalization, at batch size 2",
            Rule(holds=1.0, reverses=-1.0),
            unit="points",
        ),
    ),
    changes=(
        "Larger maps: a channel's statistics are over all pixels too, so that a batch of 2 images of 8 × 8 pixels "
        "gives 128 values in the first layer and 8 in the last. Another way to set the rate by batch size."
    ),
    measure=measure,
    plots=(Plot("error", "Held-out error by batch size", "batch size", "images wrong, %", logarithmic="x"),),
)

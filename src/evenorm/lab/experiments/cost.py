"""What does a normalization cost beside the linear map that it stands behind?"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.timing import seconds, there_and_back

ROWS = 64
# Of the layers timed alone; the slopes are taken over the larger half, where no call's overhead shows.
WIDTHS = (64, 256, 1024, 2048, 4096)
WIDE = 3
NETWORKS = {"tiny": (8, 8), "small": (64, 64), "wide": (1024, 1024)}
LAYERS: dict[str, Layer] = {"batch": evenorm.BatchNorm1d, "layer": evenorm.LayerNorm}


def slope(times: list[float]) -> float:
    """The exponent with which time grows with width, over the widest ones: that of a straight line of logarithms."""
    return float(np.polyfit(np.log(WIDTHS[-WIDE:]), np.log(times[-WIDE:]), 1)[0])


def step(network: nn.Module, x: Tensor, target: Tensor) -> None:
    """One forward and one backward pass."""
    cross_entropy(network(x), target).backward()


def measure(setting: Setting, seed: int) -> Observation:
    """Time layers alone, by width; then whole steps of small networks, with and without."""
    rounds = setting.pick(quick=12, full=30, large=60)
    found = Observation(curves={"time": {}, "share": {}})
    times: dict[str, list[float]] = {"linear": [], **{name: [] for name in LAYERS}}
    for width in WIDTHS:
        x = torch.randn(ROWS, width)
        work = {"linear": there_and_back(nn.Linear(width, width), x)}
        work |= {name: there_and_back(layer(width), x) for name, layer in LAYERS.items()}
        for name, taken in seconds(work, rounds).items():
            times[name].append(1e6 * taken)
    found.curves["time"] = {name: (WIDTHS, taken) for name, taken in times.items()}
    found.effects["normalizers"] = max(slope(times[name]) for name in LAYERS)
    found.effects["linear"] = slope(times["linear"])
    dearest = max(times[name][-1] for name in LAYERS)
    found.effects["efficient"] = 100 * dearest / (dearest + times["linear"][-1])

    images = setting.images
    pixels = torch.from_numpy(images.train_pixels[:ROWS]).float() / 255
    target = torch.from_numpy(images.train_labels[:ROWS])
    shares: dict[str, list[float]] = {name: [] for name in LAYERS}
    for widths in NETWORKS.values():
        networks = {
            name: perceptron(int(np.prod(images.shape)), widths, len(images.classes), layer, seed=seed)
            for name, layer in {"none": identity, **LAYERS}.items()
        }
        whole = seconds({name: partial(step, one, pixels, target) for name, one in networks.items()}, 2 * rounds)
        for name in LAYERS:
            shares[name].append(100 * (1 - whole["none"] / whole[name]))
    found.curves["share"] = {name: ([*NETWORKS], values) for name, values in shares.items()}
    found.effects["tiny"] = min(values[0] for values in shares.values())
    return found


EXPERIMENT = Experiment(
    question="What does a normalization cost beside the linear map that it stands behind?",
    protocol=(
        "Processor time of forward and backward pass on one core, the median of calls taken in turns: a linear map, "
        "batch and layer normalization alone, 64 rows of 64 to 4,096 values; the exponent of growth is the slope of "
        "log time over log width from 1,024 on. Then whole steps of perceptrons of two hidden layers of 8, 64 and "
        "1,024 units, 64 images, with and without normalization: its share is what the step takes longer with it."
    ),
    claims=(
        Claim(
            "efficient",
            "Normalizations are very efficient compared to the layers that they stand behind.",
            "Sharma, “Batch and Layer Normalization” (2026), Computational Complexity",
            "share of the normalizer, the dearer of batch and layer, in its time and the linear map's, at 4,096 values",
            Rule(holds=10.0, reverses=50.0),
            unit="%",
            timed=True,
        ),
        Claim(
            "normalizers",
            "The cost of a normalization grows with d.",
            "Sharma (2026), Computational Complexity: O(d)",
            "exponent of growth of its time with the width, the larger of batch and layer",
            Rule(holds=1.3, reverses=1.8),
            unit="",
            timed=True,
        ),
        Claim(
            "linear",
            "That of a fully connected layer grows with d².",
            "Sharma (2026), Computational Complexity: O(d²)",
            "exponent of growth of a linear map's time with the width",
            Rule(holds=1.7, reverses=1.2),
            unit="",
            timed=True,
        ),
        Claim(
            "tiny",
            "In very small networks the overhead might not be worth it.",
            "Sharma (2026), When NOT to Use Normalization",
            "share of a step of the network of 8 units that goes to normalization, the lesser of batch and layer; a "
            "quarter is much",
            Rule(holds=25.0, reverses=5.0),
            unit="%",
            timed=True,
        ),
    ),
    changes=(
        "Another machine: the linear map is bound by arithmetic, the normalization by memory, so that on accelerators "
        "its share is larger. More rows at the same width favor the linear map's use of the caches. Fused into its "
        "neighbors a normalization costs less."
    ),
    measure=measure,
    plots=(
        Plot("time", "Forward and backward pass, 64 rows", "values in a row", "µs", logarithmic="xy"),
        Plot("share", "Share of normalization in a step", "", "% of the step", kind="bars"),
    ),
)

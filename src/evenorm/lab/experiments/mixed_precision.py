"""Does normalization work well in half precision?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import falling
from evenorm.lab.networks import build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.rates import accuracy, attempts
from evenorm.lab.setting import Setting

RATE = 0.1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Means of what is normalized, in its deviations.
MEANS = (0.0, 1.0, 10.0, 100.0)
ROWS, WIDTH = 256, 1024


class Autocast(nn.Module):
    """A network whose linear maps and convolutions take and give half precision on the way."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) to (N, classes) in float32, in which the loss is taken."""
        with torch.autocast("cpu", self.dtype):
            return self.network(x).float()


def longhand(x: Tensor) -> Tensor:
    """Normalize each row by the formula, every step rounded to the dtype of x, sums among them."""
    mean = total(x) / x.shape[1]
    centered = x - mean[:, None]
    variance = total(centered * centered) / x.shape[1]
    return centered / (variance + torch.tensor(1e-5, dtype=x.dtype)).sqrt()[:, None]


def total(x: Tensor) -> Tensor:
    """The sum of each row, added up in pairs in the dtype of x."""
    while x.shape[1] > 1:
        x = x[:, ::2] + x[:, 1::2]
    return x[:, 0]


def layered(x: Tensor) -> Tensor:
    """Normalize each row by the layer, in the dtype of x."""
    return evenorm.LayerNorm(x.shape[1], elementwise_affine=False)(x)


def roundings(y: Tensor, exact: Tensor) -> float:
    """The root mean square error in units of what rounding the exact result once costs; infinite where none is."""
    once = (exact.to(y.dtype).double() - exact).square().mean().sqrt()
    error = (y.double() - exact).square().mean().sqrt() / once
    return float(error.nan_to_num(nan=math.inf))


def measure(setting: Setting, seed: int) -> Observation:
    """Take errors of single normalizations at several means; then train with and without autocast."""
    draw = torch.Generator().manual_seed(seed)
    found = Observation(curves={"error": {}, "accuracy": {}})
    errors: dict[str, list[float]] = {}
    ways: dict[str, Callable[[Tensor], Tensor]] = {"evenorm": layered, "longhand": longhand}
    for name, dtype in DTYPES.items():
        for mean in MEANS:
            x = (mean + torch.randn(ROWS, WIDTH, generator=draw)).to(dtype)
            exact = layered(x.double())
            for way, normalize in ways.items():
                errors.setdefault(f"{way}, {name}", []).append(roundings(normalize(x), exact))
    found.curves["error"] = {name: (MEANS, values) for name, values in errors.items()}
    found.effects["layer"] = max(max(errors[f"evenorm, {name}"]) for name in DTYPES)
    found.effects["needed"] = min(max(errors[f"longhand, {name}"]) for name in DTYPES)

    images = setting.images
    steps = setting.steps(quick=100, full=500, large=10000)
    lost = {}
    for name in ("batch", "layer"):
        reached = {}
        for precision in ("float32", "bfloat16"):

            def start(name: str = name, precision: str = precision) -> nn.Module:
                network = build("cnn", images.shape, len(images.classes), NORMALIZERS[name], seed=seed)
                return Autocast(network, DTYPES[precision]) if precision in DTYPES else network

            best = attempts(start, images, [RATE], steps=steps, seed=seed, batch=32, pace=falling(steps))[0]
            reached[precision] = accuracy(best.network, images)
            found.curves["accuracy"][f"{name}, {precision}"] = best.curve
            found.figures[f"accuracy, {name}, {precision}"] = reached[precision]
        lost[name] = reached["float32"] - reached["bfloat16"]
    found.effects["trains"] = max(lost.values())
    return found


EXPERIMENT = Experiment(
    question="Does normalization work well in half precision?",
    protocol=(
        "The lab's convolutional network on images, batches of 32, plain stochastic gradient descent from rate 0.1 "
        "falling to zero, with batch and with layer normalization, in float32 and under torch's autocast to bfloat16: "
        "held-out accuracy. Then layer normalization of 256 rows of 1,024 values in float16 and bfloat16, whose means "
        "lie 0 to 100 deviations from zero: by evenorm's layer, and by the formula with every step rounded to that "
        "dtype (sums in pairs). The error is counted in roundings: the root mean square error beside what rounding the "
        "exact result once costs. 1 is the best there is."
    ),
    claims=(
        Claim(
            "trains",
            "Normalization layers work well in mixed precision.",
            "Sharma, “Batch and Layer Normalization” (2026), Performance Optimization: “work well with FP16”",
            "held-out accuracy in float32 minus that under bfloat16 autocast, the worse of batch and layer",
            Rule(holds=1.0, reverses=5.0),
            unit="points",
        ),
        Claim(
            "layer",
            "They handle half precision automatically.",
            "Sharma (2026), Performance Optimization",
            "error of evenorm's layer in roundings, the greatest over dtypes and means",
            Rule(holds=1.5, reverses=10.0),
        ),
        Claim(
            "needed",
            "It takes statistics in higher precision for that.",
            "Micikevicius et al., “Mixed Precision Training” (2018), section 3.3",
            "error of the formula in half precision in roundings, the greatest over means, the lesser of both dtypes",
            Rule(holds=3.0, reverses=1.1),
        ),
    ),
    changes=(
        "Float16 instead of bfloat16 in training needs a scaled loss, which is not tested here. Inputs far from zero "
        "are rounded before any layer sees them: that error is in the data and not counted. Longer rows and sums one "
        "by one, not in pairs, make the formula worse."
    ),
    measure=measure,
    plots=(
        Plot("error", "Error of a layer normalization", "mean of the row, deviations", "roundings", logarithmic="y"),
        Plot("accuracy", "Held-out accuracy", "step", "held-out images right, %"),
    ),
)

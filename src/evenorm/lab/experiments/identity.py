"""Which γ and β undo a normalization?"""

from __future__ import annotations

import torch
from torch import Tensor

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.setting import Setting


def distance(y: Tensor, x: Tensor) -> float:
    """The root mean square of y − x, relative to x's standard deviation."""
    return float((y - x).square().mean().sqrt() / x.std(correction=0))


def measure(setting: Setting, seed: int) -> Observation:
    """Normalize images, each pixel over the batch, with γ and β of both claims."""
    images = setting.images
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.train_pixels), generator=draw)[:256].numpy()
    x = torch.from_numpy(images.train_pixels[chosen]).flatten(1).double()
    # Pixels of unlike spread, and some that never change.
    x = x * torch.logspace(-2, 2, x.shape[1])
    found = Observation()
    errors: dict[str, list[float]] = {"γ = √(σ² + ε), β = μ": [], "γ = 1, β = 0": []}
    epsilons = [1e-12, 1e-8, 1e-5, 1e-2, 1.0]
    for eps in epsilons:
        layer = evenorm.BatchNorm1d(x.shape[1], eps=eps, dtype=torch.float64)
        errors["γ = 1, β = 0"].append(distance(layer(x).detach(), x))
        with torch.no_grad():
            layer.weight.copy_((x.var(0, correction=0) + eps).sqrt())
            layer.bias.copy_(x.mean(0))
        errors["γ = √(σ² + ε), β = μ"].append(distance(layer(x).detach(), x))
    found.curves["error"] = {name: (epsilons, values) for name, values in errors.items()}
    found.effects["start"] = min(errors["γ = 1, β = 0"])
    found.effects["undone"] = max(errors["γ = √(σ² + ε), β = μ"])
    return found


EXPERIMENT = Experiment(
    question="Which γ and β make a normalization the identity?",
    protocol=(
        "Batch normalization in training mode, float64, of 256 images, each pixel over the batch. The pixels are "
        "scaled by factors from 0.01 to 100, so that they are unlike one another. The distance between output and "
        "input is the root mean square of their difference, divided by the input's standard deviation, over five ε "
        "from 1e-12 to 1."
    ),
    claims=(
        Claim(
            "start",
            "At its usual start, γ = 1 and β = 0, a normalization acts as the identity.",
            "Sharma, “Batch and Layer Normalization” (2026), Initialization",
            "distance between output and input at γ = 1, β = 0, the least over ε",
            Rule(holds=0.01, reverses=0.5),
            unit="σ",
        ),
        Claim(
            "undone",
            "With γ = √(σ² + ε) and β = μ the normalization is undone.",
            "Ioffe & Szegedy (2015), section 3; Sharma (2026), Why Scale and Shift Parameters?",
            "distance between output and input at those γ and β, the greatest over ε",
            Rule(holds=1e-6, reverses=0.5),
            unit="σ",
        ),
    ),
    changes=(
        "Inputs that come with mean 0 and variance 1 already: then γ = 1, β = 0 changes them little. In evaluation "
        "mode the second holds for the running averages in place of μ and σ²."
    ),
    measure=measure,
    plots=(
        Plot("error", "Distance from the identity", "ε", "RMS of output − input, σ of the input", logarithmic="xy"),
    ),
)

"""How large are the gradients of each layer, and how do they depend on the scale of the weights?"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.networks import HE, Network, identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.probes import Gradients
from evenorm.lab.setting import Setting
from evenorm.lab.training import tensors

WIDTHS = (64,) * 20
BATCH = 256
# Times He's standard deviation.
GAINS = (0.5, 0.7, 1.0, 1.4, 2.0)
SCALES = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-6, 5) if half)
# Below, the usual ε is not small beside the variance of a scaled layer, as the plot shows.
LEAST_SCALE = 0.1
LAYERS: dict[str, Layer] = {"none": identity, "batch": evenorm.BatchNorm1d}


def measure(setting: Setting, seed: int) -> Observation:
    """Differentiate the loss of one batch at the start, for every gain; then scale one layer's weights."""
    images = setting.images
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.train_labels), generator=draw)[:BATCH].numpy()
    x, target = tensors(images, images.train_pixels[chosen], images.train_labels[chosen])
    x = x.double()

    def network(layer: Layer, gain: float) -> Network:
        inputs, classes = int(np.prod(images.shape)), len(images.classes)
        return perceptron(inputs, WIDTHS, classes, layer, gain=gain * HE, seed=seed).double()

    def norms(layer: Layer, gain: float) -> list[float]:
        started, gradients = network(layer, gain), Gradients()
        cross_entropy(started(x), target).backward()
        gradients.read(started)
        return [norm for (norm,) in gradients.norms.values()]

    found = Observation(curves={"norms": {}, "spread": {}, "scale": {}})
    decades: dict[str, float] = {}
    spreads: dict[str, list[float]] = {}
    for name, layer in LAYERS.items():
        by_gain = {gain: norms(layer, gain) for gain in GAINS}
        first = [of[0] for of in by_gain.values()]
        decades[name] = math.log10(max(first) / min(first))
        # Decades between the largest and the least of the hidden layers' gradients.
        spreads[name] = [math.log10(max(of[:-1]) / min(of[:-1])) for of in by_gain.values()]
        found.curves["spread"][name] = (GAINS, spreads[name])
        for gain in (GAINS[0], 1.0, GAINS[-1]):
            hidden = by_gain[gain][:-1]
            found.curves["norms"][f"{name}, {gain:g} × He"] = (list(range(1, len(hidden) + 1)), hidden)
    found.effects["dependence"] = decades["none"] - decades["batch"]
    found.effects["even"] = float(np.mean(spreads["none"]) - np.mean(spreads["batch"]))
    suited = GAINS.index(1.0)
    found.effects["suited"] = spreads["none"][suited] - spreads["batch"][suited]

    worst: dict[str, float] = {}
    layers: dict[str, Layer] = {**LAYERS, "batch, ε = 1e-12": partial(evenorm.BatchNorm1d, eps=1e-12)}
    for name, layer in layers.items():
        started = network(layer, 1.0)
        linear = list(started.hidden())[10][1].linear
        assert isinstance(linear, nn.Linear)
        weight = linear.weight
        original = weight.detach().clone()
        (unscaled,) = torch.autograd.grad(cross_entropy(started(x), target), weight)
        errors = []
        for scale in SCALES:
            with torch.no_grad():
                weight.copy_(scale * original)
            (gradient,) = torch.autograd.grad(cross_entropy(started(x), target), weight)
            errors.append(100 * float((scale * gradient - unscaled).norm() / unscaled.norm()))
        found.curves["scale"][name] = (SCALES, errors)
        worst[name] = max(error for scale, error in zip(SCALES, errors, strict=True) if scale >= LEAST_SCALE)
    found.effects["inverse"], found.effects["exact"] = worst["batch"], worst["batch, ε = 1e-12"]
    return found


EXPERIMENT = Experiment(
    question="Does batch normalization even out the gradients of the layers?",
    protocol=(
        "Twenty hidden layers of 64 ReLU units at their start, float64, the loss of 256 images: the norm of each "
        "layer's gradient, with batch normalization before each activation and without any, at 0.5, 0.7, 1, 1.4 and 2 "
        "times He's standard deviation. The spread is the number of decades between the largest and the least norm of "
        "the hidden layers. Then the weights of layer 11 are multiplied by a from 0.001 to 100, and a · ∂ℓ/∂(aW) is "
        "compared with ∂ℓ/∂W; the effect is the worst from a = 0.1 upwards, with ε = 1e-5 and with 1e-12."
    ),
    claims=(
        Claim(
            "dependence",
            "Batch normalization reduces the dependence of gradients on the scale of the initial weights.",
            "Ioffe & Szegedy (2015), section 1; “Layer vs Batch Norm”, Gradient Flow Improvement",
            "decades that the first layer's gradient moves through as the gain goes from 0.5 to 2: without, minus with",
            Rule(holds=1.0, reverses=-1.0),
            unit="decades",
        ),
        Claim(
            "even",
            "It evens out the layers: fewer gradients vanish or explode on the way down.",
            "Sharma, “Batch and Layer Normalization” (2026), Advantages of Batch Normalization",
            "spread without, minus spread with, mean over the gains",
            Rule(holds=1.0, reverses=-1.0),
            unit="decades",
        ),
        Claim(
            "suited",
            "It evens them out too where the weights start at the scale that suits the network.",
            "Sharma (2026), as above; the contrary: Yang et al., “A Mean Field Theory of Batch Normalization” (2019), "
            "section 3",
            "spread without, minus spread with, at He's own gain",
            Rule(holds=0.3, reverses=-0.3),
            unit="decades",
        ),
        Claim(
            "inverse",
            "Larger weights get smaller gradients: ∂ℓ/∂(aW) = (1/a) · ∂ℓ/∂W.",
            "Ioffe & Szegedy (2015), section 3.3",
            "distance of a · ∂ℓ/∂(aW) from ∂ℓ/∂W in percent of ∂ℓ/∂W, the greatest over a from 0.1 to 100",
            Rule(holds=1.0, reverses=50.0),
            unit="%",
        ),
        Claim(
            "exact",
            "The same, with an ε of 1e-12.",
            "Ioffe & Szegedy (2015), section 3.3, which leaves ε out",
            "the same distance with ε = 1e-12",
            Rule(holds=1.0, reverses=50.0),
            unit="%",
        ),
    ),
    changes=(
        "Ways around the layers even the gradients out, with and without. In a ReLU network without normalization one "
        "gain acts on all layers' gradients alike; what is off in one layer alone shows as a spread. ε: the smaller "
        "beside the variance, the better the scale of the weights cancels."
    ),
    measure=measure,
    plots=(
        Plot("norms", "Gradient norm by layer, at the start", "hidden layer", "norm", logarithmic="y"),
        Plot("spread", "Spread of the gradient norms", "gain, × He's", "decades"),
        Plot("scale", "Distance of a · ∂ℓ/∂(aW) from ∂ℓ/∂W", "a", "% of ∂ℓ/∂W", logarithmic="xy"),
    ),
)

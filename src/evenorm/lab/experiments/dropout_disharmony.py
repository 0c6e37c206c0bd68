"""Do dropout and batch normalization spoil each other?"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.data import Images
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import falling
from evenorm.lab.networks import Network, dense, initialize
from evenorm.lab.rates import accuracy, attempts
from evenorm.lab.setting import Setting
from evenorm.lab.training import tensors

WIDTHS = (100,) * 4
RATE = 0.1
# Where dropout stands: after which hidden layers.
PLACES = {"no dropout": (), "after the last": (3,), "before each but the first": (0, 1, 2), "after each": (0, 1, 2, 3)}


def build(images: Images, places: tuple[int, ...], share: float, seed: int) -> Network:
    """Return four hidden layers: linear map, batch normalization, ReLU, and dropout where it is wanted."""
    flatten, *blocks = dense(int(np.prod(images.shape)), WIDTHS, evenorm.BatchNorm1d, "before")
    body: list[nn.Module] = [flatten]
    for index, block in enumerate(blocks):
        body += [block, nn.Dropout(share)] if index in places else [block]
    network = Network(*body, nn.Linear(WIDTHS[-1], len(images.classes)))
    initialize(network, seed)
    return network


@torch.no_grad()
def variance_shift(network: Network, x: Tensor) -> list[float]:
    """By layer: how far the variance that evaluation meets lies from the running one, as a ratio of at least 1."""
    network.eval()
    found: list[float] = []

    def read(layer: evenorm.BatchNorm1d, inputs: tuple[Tensor, ...]) -> None:
        assert layer.running_var is not None
        ratio = (inputs[0].var(0) + layer.eps) / (layer.running_var + layer.eps)
        found.append(float(ratio.log().abs().mean().exp()))

    layers = [layer for layer in network.modules() if isinstance(layer, evenorm.BatchNorm1d)]
    handles = [layer.register_forward_pre_hook(read) for layer in layers]
    network(x)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def renewed(network: Network, x: Tensor) -> Network:
    """Return a copy whose averages are those of all the images without dropout."""
    fresh = copy.deepcopy(network).eval()
    for layer in fresh.modules():
        if isinstance(layer, evenorm.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    fresh(x)
    return fresh.eval()


def measure(setting: Setting, seed: int) -> Observation:
    """Train with dropout at each place, and compare variances and errors."""
    images = setting.images
    steps = setting.steps(quick=500, full=2500, large=20000)
    share = 0.5
    x, _ = tensors(images, images.train_pixels, images.train_labels)
    found = Observation(curves={"variance": {}, "error": {"as trained": ([], []), "averages renewed": ([], [])}})
    shifts, errors, mended = {}, {}, {}
    for name, places in PLACES.items():

        def start(places: tuple[int, ...] = places) -> Network:
            return build(images, places, share, seed)

        network = attempts(start, images, [RATE], steps=steps, seed=seed, pace=falling(steps))[0].network
        by_layer = variance_shift(network, x)
        shifts[name] = float(np.mean(by_layer[1:]))
        errors[name] = 100 - accuracy(network, images)
        mended[name] = 100 - accuracy(renewed(network, x), images)
        found.curves["variance"][name] = (list(range(1, len(by_layer) + 1)), by_layer)
    for curve, values in zip(found.curves["error"], (errors, mended), strict=True):
        found.curves["error"][curve] = (list(values), list(values.values()))
    before, after = "before each but the first", "after the last"
    found.effects["error"] = errors[before] - errors[after]
    found.effects["shift"] = shifts[before] / shifts[after]
    found.effects["renewed"] = errors[before] - mended[before]
    return found


EXPERIMENT = Experiment(
    question="Does dropout before a batch normalization do harm?",
    protocol=(
        "Four hidden layers of 100 ReLU units on images, each with batch normalization before its activation, batches "
        "of 64, plain stochastic gradient descent from rate 0.1 falling to zero. Dropout of one half stands nowhere, "
        "after the last hidden layer alone (no normalization follows it), or after each of the first three (a "
        "normalization follows each), or after all four. The variance shift of a layer is by how much the variance of "
        "its inputs in evaluation differs from its running variance: a ratio of at least 1, geometric mean over units, "
        "then the mean over the layers after the first."
    ),
    claims=(
        Claim(
            "error",
            "Dropout before batch normalizations does harm where dropout after the last of them does not.",
            "Li et al., “Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift” "
            "(2019), section 4; “they can interact poorly”: “Batch Normalization”, Connections to Other Concepts",
            "held-out error with dropout before three normalizations, minus that with dropout after the last",
            Rule(holds=0.5, reverses=-0.5),
            unit="points",
        ),
        Claim(
            "shift",
            "Dropout makes evaluation meet another variance than the running average has learned.",
            "Li et al. (2019), equations 8 to 15 and figure 1",
            "variance shift with dropout before the normalizations, divided by that with dropout after the last",
            Rule(holds=1.05, reverses=0.95),
        ),
        Claim(
            "renewed",
            "Taking the averages again without dropout lowers the error.",
            "Li et al. (2019), section 5",
            "held-out error as trained, minus that with averages of all training images seen without dropout",
            Rule(holds=0.3, reverses=-0.3),
            unit="points",
        ),
    ),
    changes=(
        "The shift grows with the dropped share and shrinks with the width of the layer; residual networks add it up "
        "over blocks. Where a network overfits more than this one, dropout may gain more than the shift costs."
    ),
    measure=measure,
    plots=(
        Plot("variance", "Variance met in evaluation, off the running variance by", "hidden layer", "ratio"),
        Plot("error", "Held-out error, by where dropout stands", "", "held-out images wrong, %", kind="bars"),
    ),
)

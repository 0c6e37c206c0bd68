"""Does normalization reach the same quality in fewer steps?"""

from __future__ import annotations

import numpy as np
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import adam, descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, Watch, stream
from evenorm.lab.transformer import HeldOutLoss, Transformer, next_character

BATCH = 60
WIDTHS = (100, 100, 100)
TARGET = 0.9
RATES = (0.3, 1.0, 3.0)
LENGTH = 32
TEXT_RATES = (1e-3, 4e-3)
NORMALIZED: dict[str, Layer] = {"none": identity, "layer": evenorm.LayerNorm}


def measure(setting: Setting, seed: int) -> Observation:
    """Count the steps to the same quality, in a sigmoid network and in a transformer."""
    found = Observation()
    sigmoid(setting, seed, found)
    transformer(setting, seed, found)
    return found


def sigmoid(setting: Setting, seed: int, found: Observation) -> None:
    """Count the steps to the target, each network at the one of the rates that gets there first."""
    images = setting.images
    steps = setting.steps(quick=500, full=1000, large=10000)
    inputs, classes = int(np.prod(images.shape)), len(images.classes)
    reached: dict[str, int] = {}
    for name, layer in {"none": identity, "batch": evenorm.BatchNorm1d}.items():
        watches = {}
        for rate in RATES:
            network = perceptron(inputs, WIDTHS, classes, layer, activation=nn.Sigmoid, gain=1.0, seed=seed)
            watches[rate] = Watch(images, max(1, steps // 100))
            fit(network, stream(images, Schedule(BATCH, steps, rate, seed)), descent(rate), probes=[watches[rate]])
        first = {rate: watch.reached(TARGET) or steps for rate, watch in watches.items()}
        best = min(RATES, key=lambda rate: (first[rate], -max(watches[rate].shares, default=0)))
        reached[name] = first[best]
        found.figures |= {f"steps to 90 %, {name}": reached[name], f"rate, {name}": best}
        curves = found.curves.setdefault("accuracy", {})
        curves[name] = (watches[best].steps, [100 * share for share in watches[best].shares])
    found.effects["faster"] = found.effects["fivefold"] = reached["none"] / reached["batch"]


def transformer(setting: Setting, seed: int, found: Observation) -> None:
    """Count the steps after which the normalized transformer is as good as the other is at its end."""
    text = setting.text
    steps = setting.steps(quick=150, full=450, large=5000)
    best: dict[str, HeldOutLoss] = {}
    for name, layer in NORMALIZED.items():
        tried = []
        for rate in TEXT_RATES:
            network = Transformer(len(text.characters), layer, width=32, depth=3, length=LENGTH, seed=seed)
            heard = HeldOutLoss(text, max(1, steps // 40), windows=48, length=LENGTH)
            batches = text.batches(16, LENGTH, steps, seed)
            fit(network, batches, adam(rate), loss=next_character, probes=[heard])
            tried.append(heard)
        best[name] = min(tried, key=lambda heard: heard.losses[-1] if heard.losses else np.inf)
        found.curves.setdefault("loss", {})[name] = (best[name].steps, best[name].losses)
        found.figures[f"nats per character at the end, {name}"] = min(best[name].losses, default=np.nan)
    target = min(best["none"].losses, default=np.inf)
    found.effects["threefold"] = (best["none"].reached(target) or steps) / (best["layer"].reached(target) or steps)


EXPERIMENT = Experiment(
    question="Does normalization reach the same quality in fewer steps?",
    protocol=(
        "Three hidden layers of 100 sigmoid units on images, batches of 60, plain stochastic gradient descent at a "
        "constant rate, with batch normalization before each sigmoid and without any. Each network is trained at the "
        "rates 0.3, 1 and 3 and keeps the one that first gets 90 % of held-out images right; one that never does "
        "counts with all its steps, so that the ratio is then a lower bound. And a transformer on characters (3 "
        "layers, width 32, Adam, the better of two rates) with layer normalization before each branch and without "
        "any: after how many steps is the held-out loss that of the other's best."
    ),
    claims=(
        Claim(
            "faster",
            "With batch normalization the same accuracy takes fewer steps.",
            "Ioffe & Szegedy (2015), figure 1a",
            "steps to 90 % without, divided by steps with",
            Rule(holds=1.2, reverses=1.0),
        ),
        Claim(
            "fivefold",
            "With batch normalization training is 5 to 10 times as fast.",
            "Sharma, “Batch and Layer Normalization” (2026), of ResNet-50",
            "steps to 90 % without, divided by steps with",
            Rule(holds=5.0, reverses=1.0),
        ),
        Claim(
            "threefold",
            "With layer normalization a transformer needs a third of the steps.",
            "Sharma (2026): “100K steps vs. 300K+ steps without normalization”",
            "steps to the best held-out loss of the transformer without, divided by steps with",
            Rule(holds=3.0, reverses=1.0),
        ),
    ),
    changes=(
        "Activations that do not saturate, a start that suits the network, an optimizer that adapts each rate: each "
        "helps the network without normalization more. ResNet-50 and large transformers are not trained here; what is "
        "tested is whether factors of that size appear in small networks."
    ),
    measure=measure,
    plots=(
        Plot("accuracy", "Sigmoid network, each at its best rate", "step", "held-out images right, %"),
        Plot("loss", "Transformer, each at its better rate", "step", "held-out loss, nats per character"),
    ),
    data=("images", "text"),
)

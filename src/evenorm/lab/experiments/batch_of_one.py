"""Can a normalizer learn from one example at a time?"""

from __future__ import annotations

import torch

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import Network, build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.rates import accuracy
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, Watch, stream

RATES = (0.01, 0.03)
# The same images in batches, at a rate that suits them.
BATCH, BATCH_RATE = 32, 0.1
ROWS = ("none", "batch", "layer", "group")


def measure(setting: Setting, seed: int) -> Observation:
    """Train on a stream of single images, and on the same number of them in batches."""
    images = setting.images
    shown = setting.pick(quick=640, full=2400, large=64000)
    steps = setting.steps(quick=shown, full=shown, large=shown)
    found = Observation(curves={"accuracy": {}})

    def network(row: str) -> Network:
        return build("cnn", images.shape, len(images.classes), NORMALIZERS[row], seed=seed)

    online = {}
    for row in ROWS:
        tried = []
        for rate in RATES:
            watch, trained = Watch(images, max(1, steps // 12)), network(row)
            trace = fit(trained, stream(images, Schedule(1, steps, rate, seed)), descent(rate), probes=[watch])
            tried.append((trace.last_loss(), rate, trained, watch))
        _, rate, trained, watch = min(tried, key=lambda one: one[0])
        online[row] = accuracy(trained, images)
        found.figures |= {f"accuracy one at a time, {row}": online[row], f"rate, {row}": rate}
        found.curves["accuracy"][row] = (watch.steps, [100 * share for share in watch.shares])
    batched = network("layer")
    count = max(1, steps // BATCH)
    fit(batched, stream(images, Schedule(BATCH, count, BATCH_RATE, seed)), descent(BATCH_RATE))
    found.figures["accuracy in batches of 32, layer"] = accuracy(batched, images)
    found.effects["breaks"] = online["layer"] - online["batch"]
    found.effects["layer"] = found.figures["accuracy in batches of 32, layer"] - online["layer"]
    found.effects["hurts"] = online["none"] - max(online["layer"], online["group"])
    found.effects["vectors"] = answered(seed)
    return found


def answered(seed: int) -> float:
    """How much a batch normalization of one vector says about it: the deviation of its outputs beside its inputs'.

    The formula gives β for every input, so evenorm's layer, like torch's, refuses.
    """
    draw = torch.Generator().manual_seed(seed)
    layer = evenorm.BatchNorm1d(64)
    refused = 0
    for _ in range(8):
        try:
            layer(torch.randn(1, 64, generator=draw))
        except ValueError:
            refused += 1
    if refused < 8:
        return float("nan")
    # The same batch of one as one channel of one position: torch checks the shape and not the count.
    x = torch.randn(8, 64, generator=draw).double()
    y = torch.stack([(row - row.mean(0)) / (row.var(0, correction=0) + 1e-5).sqrt() for row in x[:, None]])
    return 100 * float(y.std() / x.std())


EXPERIMENT = Experiment(
    question="Can a normalized network learn from one example at a time?",
    protocol=(
        "The lab's convolutional network sees images one by one (quick: 640 of them), one step of plain stochastic "
        "gradient descent for each, at the better of the rates 0.01 and 0.03 by training loss, with no, batch, layer "
        "and group normalization; and as many images in batches of 32 at rate 0.1. In maps a batch of one still has "
        "its pixels for statistics. A single vector has none: what the formula gives there is compared with what came "
        "in, and the layer must refuse."
    ),
    claims=(
        Claim(
            "breaks",
            "Batch normalization breaks down at batch size 1, layer normalization does not.",
            "Sharma, “Batch and Layer Normalization” (2026), When NOT to Use Normalization",
            "held-out accuracy one at a time with layer normalization, minus that with batch normalization",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "vectors",
            "Of a single vector batch normalization leaves nothing.",
            "Sharma (2026), as above; Wu & He, “Group Normalization” (2018), section 1",
            "deviation of the outputs of the formula over inputs, beside that of the inputs",
            Rule(holds=1.0, reverses=50.0),
            unit="%",
        ),
        Claim(
            "layer",
            "Layer normalization works with any batch size, even 1.",
            "Sharma (2026), Advantages of Layer Normalization",
            "held-out accuracy of as many images in batches of 32, minus that one at a time, both with layer "
            "normalization",
            Rule(holds=2.0, reverses=10.0),
            unit="points",
        ),
        Claim(
            "hurts",
            "In online learning, where examples arrive one at a time, normalization can hurt performance.",
            "Sharma (2026), When NOT to Use Normalization",
            "held-out accuracy one at a time with no normalization, minus that with layer or group normalization, the "
            "better of the two",
            Rule(holds=1.0, reverses=-1.0),
            unit="points",
        ),
    ),
    changes=(
        "Larger maps give a single image more pixels for its statistics. Running averages that also normalize in "
        "training (batch renormalization, online normalization) need no batch. Classes that come in blocks and not "
        "shuffled, as a real stream's may, are harder for every one of them."
    ),
    measure=measure,
    plots=(Plot("accuracy", "Held-out accuracy, one image at a time", "images seen", "held-out images right, %"),),
)

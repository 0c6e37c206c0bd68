"""What does the momentum of a running average mean, and which value serves?"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import Network, perceptron
from evenorm.lab.rates import accuracy
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, Watch, predictions, stream

WIDTHS = (64, 64)
# The share of the past that stays at each update.
DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999)
RATE = 0.1
EARLY = 40
BATCH = 16


def remembered(batches: list[torch.Tensor], decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return running mean and variance by the article's formula, in plain steps."""
    mean, variance = torch.zeros(batches[0].shape[1]), torch.ones(batches[0].shape[1])
    for batch in batches:
        mean = decay * mean + (1 - decay) * batch.mean(0)
        variance = decay * variance + (1 - decay) * batch.var(0, correction=0)
    return mean, variance


def measure(setting: Setting, seed: int) -> Observation:
    """Compare both conventions on made-up batches; then train with every decay and look at evaluation."""
    found = Observation(curves={"accuracy": {}, "updates": {}})
    draw = torch.Generator().manual_seed(seed)
    # Independent batches of four from one population of mean 3 and variance 4.
    batches = [3 + 2 * torch.randn(4, 256, generator=draw) for _ in range(400)]
    mean, variance = remembered(batches, 0.9)
    layers = {momentum: evenorm.BatchNorm1d(256, decay=1 - momentum) for momentum in (0.1, 0.9)}
    with torch.no_grad():
        for batch in batches:
            for layer in layers.values():
                layer(batch)
    right, flipped = (layers[momentum].state_dict() for momentum in (0.1, 0.9))
    found.effects["same"] = 100 * float((right["running_mean"] - mean).abs().max()) / 3
    found.effects["flipped"] = float(flipped["running_mean"].std() / right["running_mean"].std())
    found.effects["variance"] = 100 * abs(float(variance.mean()) / 4 - 1)
    found.figures["running variance, torch's, of a population's 4"] = float(right["running_var"].mean())
    found.figures["running variance, the article's, of a population's 4"] = float(variance.mean())

    images = setting.images
    steps = setting.steps(quick=300, full=1500, large=10000)
    early, late = {}, {}
    for decay in DECAYS:
        network = perceptron(
            int(np.prod(images.shape)),
            WIDTHS,
            len(images.classes),
            partial(evenorm.BatchNorm1d, decay=decay),
            seed=seed,
        )
        watch = Watch(images, max(1, EARLY // 4))
        fit(network, stream(images, Schedule(BATCH, steps, RATE, seed)), descent(RATE), probes=[watch])
        until = next((i for i, step in enumerate(watch.steps) if step >= EARLY), len(watch.steps) - 1)
        early[decay] = 100 * watch.shares[until] if watch.shares else accuracy(network, images)
        late[decay] = accuracy(network, images)
        found.curves["accuracy"][f"decay {decay:g}"] = (watch.steps, [100 * share for share in watch.shares])
        found.curves["updates"][f"decay {decay:g}"] = needed(decay)
    found.effects["typical"] = abs(late[0.9] - late[0.99])
    found.effects["lag"] = early[0.9] - early[0.99]
    found.figures |= {f"accuracy at the end, decay {decay:g}": late[decay] for decay in DECAYS}
    found.figures["accuracy at the end by batch statistics"] = by_batch(network, setting)
    return found


def needed(decay: float) -> tuple[list[int], list[float]]:
    """Return updates, and the share of the start that is left after them."""
    updates = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    return updates, [100 * decay**count for count in updates]


def by_batch(network: Network, setting: Setting) -> float:
    """Return the held-out accuracy in percent with the statistics of the held-out images themselves."""
    images = setting.images
    found = predictions(network, images, images.test_pixels, size=len(images.test_pixels), training=True)
    return 100 * float(np.mean(found == images.test_labels))


EXPERIMENT = Experiment(
    question="What does the momentum of a running average mean, and which value serves?",
    protocol=(
        "Batches of four values from one population (mean 3, variance 4), 400 of them, for 256 channels: the article's "
        "formula with momentum 0.9 longhand beside the layer with torch's momentum 0.1 and, by mistake, 0.9. Then two "
        "hidden layers of 64 ReLU units on images, batch normalization before each, batches of 16, plain stochastic "
        "gradient descent at rate 0.1, where the averages keep 0.1 to 0.999 of the past at each update; held-out "
        "accuracy in evaluation mode after 40 steps and at the end."
    ),
    claims=(
        Claim(
            "typical",
            "Momentum is typically 0.9 or 0.99 (torch: 0.1 or 0.01), and either serves.",
            "Sharma, “Batch and Layer Normalization” (2026), Momentum for Running Statistics",
            "held-out accuracy at the end of a short training with one, off that with the other",
            Rule(holds=1.0, reverses=10.0),
            unit="points",
        ),
        Claim(
            "same",
            "0.9 in one convention is 0.1 in the other.",
            "Sharma (2026), as above, against “Batch Normalization”, Training vs. Inference: “typically 0.1”",
            "distance of the layer's running mean (torch's 0.1) from the article's formula with 0.9",
            Rule(holds=0.001, reverses=1.0),
            unit="%",
        ),
        Claim(
            "flipped",
            "A value meant for the other convention makes the running averages several times as noisy.",
            "what follows from the formula: the deviation goes with √(m/(2 − m)), a factor of 4",
            "deviation of the running mean with torch's 0.9, divided by that with 0.1",
            Rule(holds=2.0, reverses=1.0),
        ),
        Claim(
            "lag",
            "A long memory needs many updates: early in training evaluation with 0.99 is worse than with 0.9.",
            "0.99⁴⁰ leaves two thirds of the start, 0.9⁴⁰ leaves 1.5 %",
            "held-out accuracy after 40 steps with 0.9 minus that with 0.99",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "variance",
            "The running average of the batch's variance as the article writes it is the population's variance.",
            "Sharma (2026), Batch Normalization Algorithm, step 5; the contrary: Ioffe & Szegedy (2015), algorithm 2, "
            "which takes m/(m − 1) of it",
            "distance of the article's running variance from the population's, batches of four",
            Rule(holds=2.0, reverses=10.0),
            unit="%",
        ),
    ),
    changes=(
        "Longer training: after 500 updates 0.99 has forgotten its start. Smaller batches or a higher rate ask for a "
        "longer memory, weights that still move fast for a shorter one. The variance is off by 1/m: 25 % in batches of "
        "four, 0.4 % in batches of 256."
    ),
    measure=measure,
    plots=(
        Plot("accuracy", "Held-out accuracy in evaluation mode", "step", "held-out images right, %"),
        Plot("updates", "What is left of the start", "updates", "%", logarithmic="x"),
    ),
)

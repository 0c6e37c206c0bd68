"""Should a transformer normalize before each branch or after each sum, and does it need a warm-up?"""

from __future__ import annotations

import math
from typing import NamedTuple

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Pace, adam, falling, fit
from evenorm.lab.networks import identity
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.transformer import HeldOutLoss, Order, Transformer, held_out_loss, next_character

# Each network has the one that suits it with a warm-up; then the warm-up is taken away.
RATES = (5e-3, 1.5e-3)
LENGTH = 24
BATCH = 12
DEPTH = 6
# The share of the steps in which the rate rises, where it does.
WARM_UP = 0.25
NETWORKS: dict[str, tuple[Order, Layer]] = {
    "before": ("pre", evenorm.LayerNorm),
    "after": ("post", evenorm.LayerNorm),
    "none": ("pre", identity),
}


class Trained(NamedTuple):
    """One training: losses at its end, the held-out one and the way to it."""

    rate: float
    training_loss: float
    loss: float
    heard: HeldOutLoss


def warmed(steps: int) -> Pace:
    """Return the pace that rises to one over a quarter of the steps, then falls to zero.

    >>> [warmed(8)(step) for step in (0, 1, 2, 5)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rise = max(1, round(WARM_UP * steps))
    return lambda step: (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def measure(setting: Setting, seed: int) -> Observation:
    """Train each network with and without warm-up."""
    text = setting.text
    steps = setting.steps(quick=70, full=240, large=10000)
    # What a network that has learned nothing but the number of characters gets.
    guessing = math.log(len(text.characters))
    found = Observation(curves={"loss": {}})

    def trained(layer: Layer, order: Order, pace: Pace, rate: float) -> Trained:
        network = Transformer(len(text.characters), layer, order=order, width=32, depth=DEPTH, length=LENGTH, seed=seed)
        heard = HeldOutLoss(text, max(1, steps // 10), windows=32, length=LENGTH)
        batches = text.batches(BATCH, LENGTH, steps, seed)
        trace = fit(network, batches, adam(rate), pace=pace, loss=next_character, probes=[heard])
        loss = math.inf if trace.diverged else held_out_loss(network, text, windows=256, length=LENGTH)
        return Trained(rate, trace.last_loss(), min(loss, guessing), heard)

    losses = {}
    for name, (order, layer) in NETWORKS.items():
        tried = [trained(layer, order, warmed(steps), rate) for rate in RATES]
        best = min(tried, key=lambda one: one.training_loss)
        ways = {"warm-up": best, "no warm-up": trained(layer, order, falling(steps), best.rate)}
        found.figures[f"rate, {name}"] = best.rate
        for way, one in ways.items():
            curve = f"{name}, {way}"
            losses[curve] = found.figures[f"held-out loss, {curve}"] = one.loss
            found.curves["loss"][curve] = (one.heard.steps, [min(nats, guessing) for nats in one.heard.losses])
    found.effects["post"] = losses["after, no warm-up"] - losses["after, warm-up"]
    found.effects["pre"] = losses["before, no warm-up"] - losses["before, warm-up"]
    found.effects["without"] = losses["none, warm-up"] - losses["before, warm-up"]
    found.effects["better"] = losses["after, warm-up"] - losses["before, warm-up"]
    return found


EXPERIMENT = Experiment(
    question="Before each branch or after each sum: where does a transformer's normalization need a warm-up?",
    protocol=(
        "Transformers of 6 layers on characters, width 32, windows of 24, batches of 12, with layer normalization "
        "before each branch, after each sum, and without any; Adam at 0.005 or 0.0015, which rises over the first "
        "quarter of the steps and then falls to zero. Each network keeps the rate that is better for it by training "
        "loss, and is trained at that rate again without the warm-up, falling from the first step on. Loss on 256 "
        "held-out windows; what diverges counts as guessing."
    ),
    claims=(
        Claim(
            "post",
            "A transformer that normalizes after each sum needs a warm-up.",
            "Xiong et al., “On Layer Normalization in the Transformer Architecture” (2020), figure 2",
            "held-out loss after each sum, without warm-up minus with",
            Rule(holds=0.05, reverses=-0.05),
            unit="nats",
        ),
        Claim(
            "pre",
            "One that normalizes before each branch does not need it.",
            "Xiong et al. (2020), section 4",
            "held-out loss before each branch, without warm-up minus with",
            Rule(holds=0.05, reverses=0.2),
            unit="nats",
        ),
        Claim(
            "without",
            "Without layer normalization transformers would be nearly impossible to train.",
            "Sharma, “Batch and Layer Normalization” (2026), Transformer Models",
            "held-out loss without any normalization minus that before each branch, both with warm-up; impossible is "
            "1 nat worse, possible is 0.1",
            Rule(holds=1.0, reverses=0.1),
            unit="nats",
        ),
        Claim(
            "better",
            "Normalizing after each sum is crucial for training very deep transformers.",
            "Sharma (2026), Layer Normalization in Transformers; the contrary: Xiong et al. (2020)",
            "held-out loss after each sum minus that before each branch, both with warm-up",
            Rule(holds=-0.05, reverses=0.05),
            unit="nats",
        ),
    ),
    changes=(
        "A smaller rate: at the one of a well-tuned training both may do without a warm-up. Many more layers: six are "
        "what fits here, and gradients after each sum grow with depth. Plain gradient descent in place of Adam."
    ),
    measure=measure,
    plots=(Plot("loss", "Held-out loss, cut at guessing", "step", "nats per character"),),
    data=("text",),
)

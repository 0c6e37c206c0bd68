"""Is RMS normalization as good as layer normalization, and cheaper?"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import adam, falling, fit
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.timing import seconds, there_and_back
from evenorm.lab.transformer import HeldOutLoss, Transformer, held_out_loss, next_character

RATE = 3e-3
LENGTH = 32
BATCH = 16
LAYERS: dict[str, Layer] = {"layer": evenorm.LayerNorm, "rms": evenorm.RMSNorm}
# Of the layers that are timed alone.
WIDTHS = (32, 128, 512, 2048)
ROWS = 512


def measure(setting: Setting, seed: int) -> Observation:
    """Train both transformers on the same batches, and time both layers alone."""
    text = setting.text
    steps = setting.steps(quick=250, full=1000, large=20000)
    found = Observation(curves={"loss": {}, "time": {}})
    losses, networks = {}, {}
    for name, layer in LAYERS.items():
        networks[name] = Transformer(len(text.characters), layer, width=32, depth=3, length=LENGTH, seed=seed)
        heard = HeldOutLoss(text, max(1, steps // 25), windows=32, length=LENGTH)
        batches = text.batches(BATCH, LENGTH, steps, seed)
        fit(networks[name], batches, adam(RATE), pace=falling(steps), loss=next_character, probes=[heard])
        found.curves["loss"][name] = (heard.steps, heard.losses)
        losses[name] = held_out_loss(networks[name], text, windows=256, length=LENGTH)
        found.figures[f"held-out loss, {name}"] = losses[name]
    found.effects["parity"] = losses["rms"] - losses["layer"]

    rounds = setting.pick(quick=15, full=40, large=100)
    x, target = next(iter(text.batches(BATCH, LENGTH, 1, seed)))

    def step(network: nn.Module) -> None:
        next_character(network(x), target).backward()

    whole = seconds({name: partial(step, network) for name, network in networks.items()}, rounds)
    found.effects["faster"] = whole["layer"] / whole["rms"]
    times: dict[str, list[float]] = {name: [] for name in LAYERS}
    for width in WIDTHS:
        x = torch.randn(ROWS, width)
        alone = seconds({name: there_and_back(layer(width), x) for name, layer in LAYERS.items()}, rounds)
        for name, taken in alone.items():
            times[name].append(1e6 * taken)
    for name, values in times.items():
        found.curves["time"][name] = (WIDTHS, values)
    found.effects["cheaper"] = times["layer"][-1] / times["rms"][-1]
    return found


EXPERIMENT = Experiment(
    question="Is RMS normalization as good as layer normalization, and cheaper?",
    protocol=(
        "A transformer on characters (3 layers, width 32, 4 heads, windows of 32), normalized before each branch, "
        "batches of 16, Adam from rate 0.003 falling to zero, the same batches and the same start for both. Loss on "
        "256 held-out windows. Times are processor time of forward and backward pass on one core, taken in turns: of "
        "the whole network, and of the layers alone on 512 rows of 32 to 2,048 values."
    ),
    claims=(
        Claim(
            "parity",
            "RMS normalization performs comparably to layer normalization.",
            "“Batch Normalization”, Normalization Variants; Zhang & Sennrich, “Root Mean Square Layer Normalization” "
            "(2019), section 6",
            "held-out loss with RMS minus that with layer normalization; comparable is 0.03 nats worse or less",
            Rule(holds=0.03, reverses=0.1),
            unit="nats",
        ),
        Claim(
            "cheaper",
            "RMS normalization is computationally cheaper.",
            "“Batch Normalization”, Normalization Variants",
            "time of layer normalization divided by that of RMS normalization, 512 rows of 2,048 values",
            Rule(holds=1.1, reverses=0.95),
            timed=True,
        ),
        Claim(
            "faster",
            "With RMS normalization a whole network takes 7 % less time or better.",
            "Zhang & Sennrich (2019), abstract: 7 % to 64 %",
            "time of a step with layer normalization, divided by that with RMS normalization",
            Rule(holds=1.07, reverses=0.97),
            timed=True,
        ),
    ),
    changes=(
        "The time is that of evenorm's kernels; where a layer is unfused, as in 2019, each sweep that is saved counts "
        "for more. The larger the network, the smaller the share of its normalizers. Larger models and longer training "
        "could bring a difference in loss to light that is smaller than what is seen here."
    ),
    measure=measure,
    plots=(
        Plot("loss", "Held-out loss", "step", "nats per character"),
        Plot("time", "Time of the layer alone, 512 rows", "values in a row", "µs, forward and backward", "lines", "xy"),
    ),
    data=("text",),
)

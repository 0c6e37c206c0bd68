"""Can a tanh replace the normalization of a transformer?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import adam, falling, fit
from evenorm.lab.networks import identity
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.timing import seconds, there_and_back
from evenorm.lab.transformer import HeldOutLoss, Transformer, held_out_loss, next_character

RATES = (1e-3, 4e-3)
LENGTH = 32
BATCH = 16
WIDTH, ROWS = 512, 512


class DynamicTanh(nn.Module):
    r"""An activation in the place of a normalizer: :math:`y = \tanh(\alpha x) \cdot \gamma + \beta`, one α for all.

    Source:
        Zhu et al., "Transformers without Normalization" (2025), equation 1.
    """

    def __init__(self, width: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same."""
        return torch.tanh(self.alpha * x) * self.weight + self.bias


LAYERS: dict[str, Layer] = {"layer": evenorm.LayerNorm, "dynamic tanh": DynamicTanh, "none": identity}


def measure(setting: Setting, seed: int) -> Observation:
    """Train the three transformers, each at the better of two rates, and time the layers."""
    text = setting.text
    steps = setting.steps(quick=120, full=480, large=20000)
    found = Observation(curves={"loss": {}})
    losses = {}
    for name, layer in LAYERS.items():
        tried = []
        for rate in RATES:
            network = Transformer(len(text.characters), layer, width=32, depth=3, length=LENGTH, seed=seed)
            heard = HeldOutLoss(text, max(1, steps // 20), windows=32, length=LENGTH)
            batches = text.batches(BATCH, LENGTH, steps, seed)
            trace = fit(network, batches, adam(rate), pace=falling(steps), loss=next_character, probes=[heard])
            tried.append((trace.last_loss(), rate, network, heard))
        _, rate, network, heard = min(tried, key=lambda one: one[0])
        losses[name] = held_out_loss(network, text, windows=256, length=LENGTH)
        found.figures |= {f"held-out loss, {name}": losses[name], f"rate, {name}": rate}
        found.curves["loss"][name] = (heard.steps, heard.losses)
    found.effects["parity"] = losses["dynamic tanh"] - losses["layer"]
    found.effects["better"] = losses["none"] - losses["dynamic tanh"]
    x = torch.randn(ROWS, WIDTH)
    rounds = setting.pick(quick=15, full=40, large=100)
    taken = seconds({name: there_and_back(LAYERS[name](WIDTH), x) for name in ("layer", "dynamic tanh")}, rounds)
    found.effects["cheaper"] = taken["layer"] / taken["dynamic tanh"]
    return found


EXPERIMENT = Experiment(
    question="Can an elementwise tanh replace the normalization of a transformer?",
    protocol=(
        "A transformer on characters (3 layers, width 32, 4 heads, windows of 32) with layer normalization before each "
        "branch, with tanh(αx) · γ + β in its place (α = 0.5 at the start, learned), and with neither; batches of 16, "
        "Adam falling to zero from 0.001 or 0.004, the better by training loss; the same batches and start for all. "
        "Loss on 256 held-out windows. Times are processor time of forward and backward pass of the layer alone on one "
        "core, 512 rows of 512 values, taken in turns."
    ),
    claims=(
        Claim(
            "parity",
            "With a dynamic tanh in place of the normalization a transformer is as good.",
            "Zhu et al., “Transformers without Normalization” (2025), section 5",
            "held-out loss with dynamic tanh minus that with layer normalization; as good is 0.03 nats worse or less",
            Rule(holds=0.03, reverses=0.1),
            unit="nats",
        ),
        Claim(
            "better",
            "A dynamic tanh is better than nothing in that place.",
            "Zhu et al. (2025), section 6.2 on what tanh does",
            "held-out loss with neither, minus that with dynamic tanh",
            Rule(holds=0.03, reverses=-0.03),
            unit="nats",
        ),
        Claim(
            "cheaper",
            "A dynamic tanh costs less time than a normalization.",
            "Zhu et al. (2025), section 6.1, on a GPU and against an RMS normalization that was not fused",
            "time of layer normalization divided by that of dynamic tanh",
            Rule(holds=1.1, reverses=0.9),
            timed=True,
        ),
    ),
    changes=(
        "α has to suit the width: the authors tune its start for large language models. Here the dynamic tanh is three "
        "operations of torch and the layer normalization one fused kernel; fused into one loop a tanh would cost about "
        "what it costs to read and write once, on a GPU at least."
    ),
    measure=measure,
    plots=(Plot("loss", "Held-out loss", "step", "nats per character"),),
    data=("text",),
)

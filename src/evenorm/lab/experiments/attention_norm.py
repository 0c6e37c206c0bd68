"""Which normalization serves attention over sequences of different lengths?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, Probe, adam, falling, fit
from evenorm.lab.networks import identity
from evenorm.lab.setting import Setting
from evenorm.lab.transformer import Transformer

LENGTH, SHORTEST = 32, 4
BATCH = 16
RATE = 3e-3
# Stands for no character, and for no target.
PADDING = -1


class OverPositions(nn.Module):
    """Batch normalization of (N, T, D), per feature over all positions, or over those that are valid alone.

    Attributes:
        valid: (N, T), of the next call; none where padding counts as well.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = evenorm.BatchNorm1d(width)
        self.valid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) to the same."""
        return self.norm(x.mT, mask=self.valid).mT


class Ragged(nn.Module):
    """A causal transformer on padded sequences: no valid position sees the padding, but for the normalizer's part."""

    def __init__(self, transformer: Transformer, masked: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.over_valid = [one for one in self.modules() if isinstance(one, OverPositions)] if masked else []

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) to (N, T, characters)."""
        for layer in self.over_valid:
            layer.valid = x != PADDING
        return self.transformer(x.clamp_min(0))


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy over valid positions, in nats per character."""
    return cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PADDING)


def ragged(batch: Batch, draw: torch.Generator) -> Batch:
    """Cut every sequence at a length of its own; most are short, as sentences are."""
    x, target = batch
    share = torch.rand(len(x), generator=draw) ** 2
    lengths = SHORTEST + (share * (x.shape[1] - SHORTEST + 1)).long()
    beyond = torch.arange(x.shape[1]) >= lengths[:, None]
    return x.masked_fill(beyond, PADDING), target.masked_fill(beyond, PADDING)


class HeldOut(Probe):
    """Takes the loss on held-out sequences, ragged in the same way, in evaluation mode."""

    def __init__(self, held_out: Batch, every: int) -> None:
        self.held_out, self.every = held_out, every
        self.steps: list[int] = []
        self.losses: list[float] = []

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return (step + 1) % self.every == 0

    @torch.no_grad()
    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take it."""
        self.steps.append(step + 1)
        self.losses.append(float(loss(network.eval()(self.held_out[0]), self.held_out[1])))


def measure(setting: Setting, seed: int) -> Observation:
    """Train each on the same ragged batches."""
    text = setting.text
    steps = setting.steps(quick=150, full=600, large=20000)
    draw = torch.Generator().manual_seed(seed)
    drawn = [ragged(batch, draw) for batch in text.batches(BATCH, LENGTH, steps, seed)]
    held_out = ragged(text.held_out(192, LENGTH), torch.Generator().manual_seed(0))
    found = Observation(curves={"loss": {}})
    losses = {}
    layers: dict[str, Callable[[int], nn.Module]] = {
        "none": identity,
        "batch": OverPositions,
        "masked batch": OverPositions,
        "layer": evenorm.LayerNorm,
        "rms": evenorm.RMSNorm,
    }
    for name, layer in layers.items():
        transformer = Transformer(len(text.characters), layer, width=32, depth=2, length=LENGTH, seed=seed)
        network = Ragged(transformer, masked=name == "masked batch")
        heard = HeldOut(held_out, max(1, steps // 20))
        fit(network, drawn, adam(RATE), pace=falling(steps), loss=loss, probes=[heard])
        with torch.no_grad():
            losses[name] = float(loss(network.eval()(held_out[0]), held_out[1]))
        found.figures[f"held-out loss, {name}"] = losses[name]
        found.curves["loss"][name] = (heard.steps, heard.losses)
    found.effects["layer"] = losses["batch"] - losses["layer"]
    found.effects["masked"] = losses["batch"] - losses["masked batch"]
    found.effects["still"] = losses["masked batch"] - losses["layer"]
    found.effects["rms"] = losses["rms"] - losses["layer"]
    found.figures["padding, %"] = 100 * float((held_out[0] == PADDING).float().mean())
    return found


EXPERIMENT = Experiment(
    question="Which normalization serves attention over sequences of different lengths?",
    protocol=(
        "A causal transformer on characters (2 layers, width 32, 4 heads) reads sequences of 4 to 32 characters, most "
        "of them short, padded to 32; batches of 16, Adam from 0.003 falling to zero, the same batches and start for "
        "all. Before each branch stands nothing, batch normalization per feature over all positions, the same over "
        "valid positions alone (a mask), layer or RMS normalization. Loss on valid positions of 192 held-out "
        "sequences, ragged in the same way, in evaluation mode."
    ),
    claims=(
        Claim(
            "layer",
            "Where sequence lengths vary, layer normalization is better than batch normalization.",
            "“Batch normalisation” (Definition), Limitations and In Modern LLMs; Sharma, “Batch and Layer "
            "Normalization” (2026), When to Use Each",
            "held-out loss with batch normalization, minus that with layer normalization",
            Rule(holds=0.05, reverses=-0.05),
            unit="nats",
        ),
        Claim(
            "masked",
            "The padding is what makes it worse: a mask on its statistics helps batch normalization.",
            "what the reason given says: “Batch normalisation” (Definition), In Modern LLMs: variable sequence lengths",
            "held-out loss with batch normalization over all positions, minus that over valid ones",
            Rule(holds=0.05, reverses=-0.05),
            unit="nats",
        ),
        Claim(
            "still",
            "Batch normalization is worse in a transformer even without padding in its statistics.",
            "Shen et al., “PowerNorm: Rethinking Batch Normalization in Transformers” (2020), section 3",
            "held-out loss with masked batch normalization, minus that with layer normalization",
            Rule(holds=0.05, reverses=-0.05),
            unit="nats",
        ),
        Claim(
            "rms",
            "RMS normalization performs comparably to layer normalization here too.",
            "“Batch Normalization”, Normalization Variants",
            "held-out loss with RMS normalization, minus that with layer normalization; comparable is 0.05 nats worse "
            "or less",
            Rule(holds=0.05, reverses=0.2),
            unit="nats",
        ),
    ),
    changes=(
        "Batch statistics over positions tell a causal network of its future in training, and are gone in evaluation; "
        "longer training lets it lean on that. Evaluation with other lengths than training, or a share of padding that "
        "changes, hurts running averages that have seen padding. Batches of many tokens are kinder to them."
    ),
    measure=measure,
    plots=(Plot("loss", "Held-out loss", "step", "nats per character"),),
    data=("text",),
)

"""A small transformer that predicts the next character."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from evenorm.lab.fit import Batch, Probe
from evenorm.lab.normalizers import Layer
from evenorm.lab.text import Text

Order = Literal["pre", "post"]


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) to the same."""
        n, t, d = x.shape
        q, k, v = self.mix(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class Sublayer(nn.Module):
    """A branch and the way around it: x + f(norm(x)) or norm(x + f(x))."""

    def __init__(self, branch: nn.Module, norm: nn.Module, order: Order) -> None:
        super().__init__()
        self.branch, self.norm, self.order = branch, norm, order

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) to the same."""
        if self.order == "pre":
            return x + self.branch(self.norm(x))
        return self.norm(x + self.branch(x))


class Transformer(nn.Module):
    """Characters (N, T) to the logits of the following ones (N, T, characters).

    >>> import evenorm
    >>> network = Transformer(50, evenorm.LayerNorm, width=16, depth=1, heads=2, length=8)
    >>> network(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 50])

    Args:
        layer: makes a normalizer of (N, T, D) from D; ``identity`` for none.
        order: before each branch, with one more at the end, or after each sum.
    """

    def __init__(
        self,
        characters: int,
        layer: Layer,
        *,
        order: Order = "pre",
        width: int = 48,
        depth: int = 3,
        heads: int = 4,
        length: int = 48,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(length, width)
        branches = [branch for _ in range(depth) for branch in (Attention(width, heads), hidden(width))]
        self.body = nn.Sequential(*(Sublayer(branch, layer(width), order) for branch in branches))
        self.last = layer(width) if order == "pre" else nn.Identity()
        self.head = nn.Linear(width, characters)
        draw = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, module.in_features**-0.5, generator=draw)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 1.0, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) to (N, T, characters)."""
        x = self.characters(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.last(self.body(x)))


def hidden(width: int) -> nn.Module:
    """Return the feed-forward branch."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def next_character(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of (N, T, characters) and (N, T), in nats per character."""
    return cross_entropy(logits.flatten(0, 1), target.flatten())


class HeldOutLoss(Probe):
    """Takes the loss on held-out text every so many steps.

    Attributes:
        steps: after how many steps it was taken.
        losses: in nats per character.
    """

    def __init__(self, text: Text, every: int, windows: int = 64, length: int = 48) -> None:
        self.text, self.every, self.windows, self.length = text, every, windows, length
        self.steps: list[int] = []
        self.losses: list[float] = []

    def due(self, step: int) -> bool:
        """Whether so many steps are done."""
        return (step + 1) % self.every == 0

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take the loss in evaluation mode."""
        self.steps.append(step + 1)
        self.losses.append(held_out_loss(network, self.text, self.windows, self.length))

    def reached(self, target: float) -> int | None:
        """Return after how many steps a loss was first seen, or none."""
        return next((step for step, loss in zip(self.steps, self.losses, strict=True) if loss <= target), None)


@torch.no_grad()
def held_out_loss(network: nn.Module, text: Text, windows: int = 64, length: int = 48) -> float:
    """Return the loss on evenly spread held-out windows, in evaluation mode; the mode stays as it was."""
    training = network.training
    network.eval()
    x, target = text.held_out(windows, length)
    loss = float(next_character(network(x), target))
    network.train(training)
    return loss

"""Networks of the clinic's scripts, and data for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Images(nn.Module):
    """A small convolutional classifier of 8 × 8 images."""

    def __init__(self, *, momentum: float = 0.1, width: int = 8) -> None:
        super().__init__()
        self.features: nn.Module = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, momentum=momentum),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, momentum=momentum),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Rows(nn.Module):
    """A small network on vectors of 6."""

    def __init__(self, *, norm: type[nn.Module] = nn.BatchNorm1d, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width, bias=False), norm(width), nn.ReLU())
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Still(nn.Module):
    """A part that stays in evaluation mode."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.train()

    def train(self, mode: bool = True) -> Still:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class Block(nn.Module):
    """A transformer's block without attention."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.ln_1(x))
        return x + self.mlp(self.ln_2(x).relu())


class Language(nn.Module):
    """Two blocks, a final norm and a head over 16 tokens."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.ln_f(self.blocks(self.embedding(tokens))))


def images(batches: int = 4, samples: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(batches):
        yield torch.randn(samples, 3, 8, 8) * 2 + 1, torch.randint(4, (samples,))


def rows(batches: int = 4, samples: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(batches):
        x = torch.randn(samples, 6) * 2 + 1
        yield x, x.argmax(1).clamp_max(3)


def tokens(samples: int = 4, length: int = 6) -> Tensor:
    return torch.randint(16, (samples, length))


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)

"""Batch normalization of sequences of different lengths: what lies beyond the lengths is no data.

    python examples/ragged_sequences.py

The same network twice, with and without the lengths, on short sequences padded to long ones. Without them the padding
is in every mean and variance, and an answer depends on how long the longest sequence of its batch is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import evenorm


class Listener(nn.Module):
    """Tells rising from falling tones."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.first, self.second = nn.Conv1d(1, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
        self.first_norm = evenorm.BatchNorm1d(16, activation="relu")
        self.second_norm = evenorm.BatchNorm1d(16, activation="relu")
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits from the mean over the valid places."""
        known = lengths if self.masked else None
        x = self.first_norm(self.first(x), lengths=known)
        x = self.second_norm(self.second(x), lengths=known)
        valid = (torch.arange(x.shape[2]) < lengths[:, None])[:, None]
        logits: Tensor = self.head((x * valid).sum(2) / lengths[:, None])
        return logits


def tones(count: int, longest: int = 96) -> tuple[Tensor, Tensor, Tensor]:
    """Tones of different lengths, padded with zeros; their lengths; whether they rise."""
    lengths, rising = torch.randint(24, longest + 1, (count,)), torch.randint(2, (count,))
    time = torch.arange(longest) / 24
    pitch = torch.where(rising[:, None] == 1, 1 + time, 5 - time)
    tone = torch.sin(pitch * time * 3) + 0.3 * torch.randn(count, longest)
    return (tone * (torch.arange(longest) < lengths[:, None]))[:, None], lengths, rising


def main(steps: int = 60) -> dict[str, float]:
    """Train both; return by how much more padding changes their answers."""
    moved = {}
    for name, masked in (("with lengths", True), ("without", False)):
        torch.manual_seed(0)
        model = Listener(masked)
        optimizer = torch.optim.AdamW(evenorm.split_weight_decay(model, 0.01), lr=3e-3)
        for _ in range(steps):
            x, lengths, rising = tones(32)
            loss = nn.functional.cross_entropy(model(x, lengths), rising)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, lengths, _ = tones(64)
        with torch.no_grad():
            longer = nn.functional.pad(x, (0, 96))
            moved[name] = (model(x, lengths) - model(longer, lengths)).abs().max().item()
        print(f"{name:13} loss {loss.item():.3f}, another 96 places of padding move an answer by {moved[name]:.2g}")
    return moved


if __name__ == "__main__":
    main()

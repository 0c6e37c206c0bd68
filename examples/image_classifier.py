"""Train a small classifier of images whose batch norms carry their activation, and find out whether it is healthy.

    python examples/image_classifier.py

The images are scikit-learn's digits: pip install 'evenorm[lab]'.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import evenorm


class Block(nn.Module):
    """Two convolutions around which the input goes; the sum and its ReLU are the second norm's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = evenorm.BatchNorm2d(channels, activation="relu")
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = evenorm.BatchNorm2d(channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """relu(norm(conv(…)) + x)."""
        y = self.second(self.first_norm(self.first(x)))
        out: Tensor = self.second_norm(y, residual=x)
        return out


def network() -> nn.Sequential:
    """Two blocks, the second on half the resolution."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        evenorm.BatchNorm2d(16, activation="relu"),
        Block(16),
        nn.MaxPool2d(2),
        Block(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def main(epochs: int = 5) -> float:
    """Train; return the share of right answers on images that were held out."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    target = torch.tensor(labels)
    train, held_out = torch.randperm(len(images)).split([1500, len(images) - 1500])

    model = network()
    print(evenorm.examine(model, images[train[:64]]))
    optimizer = torch.optim.AdamW(evenorm.split_weight_decay(model, 0.01), lr=3e-3)
    for epoch in range(epochs):
        for rows in train[torch.randperm(len(train))].split(64):
            loss = nn.functional.cross_entropy(model(images[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.3f}")

    model.eval()
    with torch.no_grad():
        right = (model(images[held_out]).argmax(1) == target[held_out]).float().mean().item()
    print(f"accuracy {right:.3f} on {len(held_out)} images held out")
    return right


if __name__ == "__main__":
    main()

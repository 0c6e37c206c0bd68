"""Find discs in noise with a U-Net whose GroupNorm and SiLU are one sweep over memory.

    python examples/unet.py

Segmentation trains with few images at a time; group normalization does not mind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import evenorm


class Double(nn.Sequential):
    """Twice: convolution, group normalization, SiLU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1),
            evenorm.GroupNorm(4, outside, activation="silu"),
            nn.Conv2d(outside, outside, 3, padding=1),
            evenorm.GroupNorm(4, outside, activation="silu"),
        )


class UNet(nn.Module):
    """Down two times and up again, with the finer map joined at each level."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = Double(1, width), Double(width, 2 * width), Double(2 * width, 2 * width)
        self.up_middle, self.up_fine = Double(4 * width, width), Double(2 * width, width)
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each pixel."""
        fine = self.fine(x)
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down(middle))
        middle = self.up_middle(torch.cat([middle, self.up(coarse)], 1))
        logits: Tensor = self.head(self.up_fine(torch.cat([fine, self.up(middle)], 1)))
        return logits


def discs(count: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Images with a disc in noise, and the disc."""
    center, radius = torch.rand(count, 2, 1, 1) * side, 4 + 6 * torch.rand(count, 1, 1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = (rows - center[:, 0]) ** 2 + (columns - center[:, 1]) ** 2 < radius**2
    disc = inside.float()[:, None]
    return disc + torch.randn_like(disc), disc


def main(steps: int = 80, batch: int = 4) -> float:
    """Train; return the overlap with the true discs, from 0 to 1."""
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.AdamW(evenorm.split_weight_decay(model, 0.01), lr=2e-3)
    for step in range(steps):
        image, disc = discs(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(model(image), disc)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}")
    image, disc = discs(32)
    with torch.no_grad():
        found = model(image) > 0
    overlap = ((found & (disc > 0)).sum() / (found | (disc > 0)).sum().clamp_min(1)).item()
    print(f"intersection over union {overlap:.3f} on 32 new images")
    return overlap


if __name__ == "__main__":
    main()

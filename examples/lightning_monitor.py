"""Train with Lightning, while a monitor watches the normalizers and says at the end what it found.

    python examples/lightning_monitor.py

Needs lightning. The network has a mistake in it, a momentum in the other framework's convention; the monitor finds it.
"""

from __future__ import annotations

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import evenorm
from evenorm.doctor.callbacks import lightning_callback


class Regression(lightning.LightningModule):
    """A small network that learns a product."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, 32, bias=False),
            evenorm.BatchNorm1d(32, momentum=0.99, activation="gelu"),
            nn.Linear(32, 1),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch."""
        x, y = batch
        return nn.functional.mse_loss(self.body(x)[:, 0], y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW that spares the normalizers."""
        return torch.optim.AdamW(evenorm.split_weight_decay(self, 0.01), lr=1e-2)


def main(steps: int = 100) -> tuple[str, ...]:
    """Train; return the codes of what the monitor found."""
    torch.manual_seed(0)
    x = torch.randn(2048, 2)
    loader = DataLoader(TensorDataset(x, x[:, 0] * x[:, 1]), batch_size=64, shuffle=True)
    seen: list[evenorm.Examination] = []
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning_callback(lambda monitor: seen.append(monitor.examination()))],
    )
    trainer.fit(Regression(), loader)
    print(seen[0])
    return seen[0].codes


if __name__ == "__main__":
    main()

"""A monitor inside other people's loops: Lightning, transformers' Trainer; and its figures in TensorBoard.

The classes derive from their hosts' when they are made, so that neither host is needed to import this.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.monitor import Monitor

__all__ = ["lightning_callback", "trainer_callback", "write_scalars"]

Finished = Callable[[Monitor], object]


def lightning_callback(finished: Finished) -> Any:
    """A callback for Lightning's ``Trainer(callbacks=[…])``.

    Args:
        finished: called with the monitor when the training ends, for example ``lambda m: print(m.examination())``.
    """
    host = next(name for name in ("lightning.pytorch", "pytorch_lightning", "") if name in sys.modules or not name)
    base: Any = importlib.import_module(host or "lightning.pytorch").Callback

    class Doctor(base):  # type: ignore[misc]
        """Watches the module that is fitted."""

        def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
            self.monitor = _entered(pl_module, trainer.optimizers[0] if trainer.optimizers else None)

        def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
            _left(self.monitor, finished)

    return Doctor()


def trainer_callback(finished: Finished) -> Any:
    """A callback for transformers' ``Trainer(callbacks=[…])``; ``finished`` as in :func:`lightning_callback`."""
    base: Any = importlib.import_module("transformers").TrainerCallback

    class Doctor(base):  # type: ignore[misc]
        """Watches the model that is trained."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            # Accelerate wraps the optimizer; the hook belongs on what it wraps.
            optimizer = given.get("optimizer")
            self.monitor = _entered(given["model"], getattr(optimizer, "optimizer", optimizer))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            _left(self.monitor, finished)

    return Doctor()


def write_scalars(monitor: Monitor, writer: Any) -> None:
    """Add the newest figures to a ``torch.utils.tensorboard.SummaryWriter``, or whatever has ``add_scalar``."""
    for row in monitor.table().rows:
        figures = {"mean": row.mean, "std": row.deviation, "saturated": row.saturated, "updates": row.updates}
        figures |= {name: value for name in ("drift", "ratio") if (value := getattr(row, name)) is not None}
        figures |= {f"gradient/{name}": norm for name, norm in row.gradients.items()}
        for name, figure in figures.items():
            writer.add_scalar(f"normalization/{row.path}/{name}", figure, monitor.steps)


def _entered(model: nn.Module, optimizer: Optimizer | None) -> Monitor:
    return Monitor(model, optimizer).__enter__()


def _left(monitor: Monitor, finished: Finished) -> None:
    monitor.__exit__(None, None, None)
    finished(monitor)

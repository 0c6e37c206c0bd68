"""A monitor inside other people's loops, run by these people's own trainers."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evenorm.doctor import Monitor
from evenorm.doctor.callbacks import lightning_callback, trainer_callback, write_scalars

# What the trainers' own code warns of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 4


class Net(nn.Module):
    """Answers with a loss, as transformers' models do; its momentum is flipped."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.body(x).square().mean()}


def watched(monitors: list[Monitor]) -> None:
    """One monitor, of a training of four steps, off again."""
    (monitor,) = monitors
    assert monitor.steps == STEPS
    assert [step.updates for step in monitor.record.steps] == [{"body.1": 1}] * STEPS
    assert {"body.1.weight", "body.1.bias"} < set(monitor.record.steps[-1].gradients)
    assert monitor.examination().codes == ("EN112",)
    assert not any(module._forward_hooks for module in monitor.model.modules())


def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the trainer is transformers'")
    pytest.importorskip("accelerate", reason="transformers' trainer needs it")
    monitors: list[Monitor] = []
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"x": torch.randn(4)} for _ in range(16)]
    callbacks = [trainer_callback(monitors.append)]
    transformers.Trainer(model=Net(), args=settings, train_dataset=rows, callbacks=callbacks).train()
    watched(monitors)


def test_lightning() -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch", reason="the trainer is Lightning's")
    monitors: list[Monitor] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = Net().body

        def training_step(self, x: Tensor, index: int) -> Tensor:
            return self.body(x).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[lightning_callback(monitors.append)],
        **dict.fromkeys(quiet, False),
    )
    rows: Any = torch.randn(32, 4)
    trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=8))
    watched(monitors)


def trained() -> Monitor:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer) as monitor:
        for _ in range(2):
            model(torch.randn(8, 4))["loss"].backward()
            optimizer.step()
    return monitor


class Page:
    """Has ``add_scalar`` and nothing else."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[float, int]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.lines[name] = (value, step)


def test_scalars_of_every_layer() -> None:
    monitor, page = trained(), Page()
    write_scalars(monitor, page)
    (row,) = monitor.table().rows
    assert {name.removeprefix("normalization/body.1/") for name in page.lines} == {
        *("mean", "std", "saturated", "updates", "drift", "ratio", "gradient/weight", "gradient/bias")
    }
    assert page.lines["normalization/body.1/std"] == (row.deviation, 2)
    assert page.lines["normalization/body.1/gradient/weight"][0] == row.gradients["weight"] > 0


def test_tensorboard_reads_them_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the writer is TensorBoard's")
    from torch.utils.tensorboard import SummaryWriter

    reading: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    monitor = trained()
    with SummaryWriter(str(tmp_path)) as writer:
        write_scalars(monitor, writer)
    events = reading.EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Scalars("normalization/body.1/std")
    assert (event.value, event.step) == (pytest.approx(monitor.table().rows[0].deviation), 2)

"""The suite ``monitor`` of the benchmark: what watching costs, and that it changes nothing."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from evenorm.bench import watched
from evenorm.cli import app
from evenorm.doctor import Monitor

pytest.importorskip("transformers", reason="the network is transformers'")


def test_the_monitor_is_timed_beside_the_same_steps_without_it() -> None:
    seen: list[Monitor] = []

    def watch(*given: Any) -> Monitor:
        seen.append(Monitor(*given))
        return seen[-1]

    (row,) = watched.measure(watch, 0.01, quick=True)
    assert row.ours.seconds is not None
    assert row.ours.error == 0.0
    assert set(row.timings) == {"evenorm", watched.BARE}
    assert seen[0].steps == 2
    assert seen[1].steps > 5
    assert all(len(step.forwards) == 1 for step in seen[1].record.steps)


def test_a_watcher_that_meddles_has_no_speed() -> None:
    def meddle(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        def raise_the_rate(*_: object) -> None:
            optimizer.param_groups[0]["lr"] = 1e-2

        model.register_forward_hook(raise_the_rate)
        return nullcontext()

    (row,) = watched.measure(meddle, 0.01, quick=True)
    assert "watching moves a loss" in str(row.ours.absent)


def test_the_command_says_what_watching_costs() -> None:
    said = CliRunner().invoke(app, ["bench", "monitor", "--quick"])
    assert said.exit_code == 0
    assert "Watching ResNet-50 costs " in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80

"""`evenorm compare --model module:factory`: a network of the user's own, converted row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import evenorm
from evenorm.cli import app
from evenorm.lab.comparison.compare import Protocol
from evenorm.lab.own import build_own

MODULE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )

def vectors():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_subject.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_rows_differ_in_the_normalizer_alone() -> None:
    networks = {row: build_own("own_subject:build", row, seed=1) for row in ("batch", "layer", "group")}
    kinds = {row: type(network.get_submodule("0.1")) for row, network in networks.items()}
    assert kinds == {"batch": evenorm.BatchNorm2d, "layer": evenorm.LayerNorm2d, "group": evenorm.GroupNorm}
    weights = [network.get_parameter("0.0.weight") for network in networks.values()]
    assert all(weight.equal(weights[0]) for weight in weights)
    assert not weights[0].equal(build_own("own_subject:build", "batch", seed=2).get_parameter("0.0.weight"))
    torch.testing.assert_close(networks["batch"](x := torch.randn(4, 1, 8, 8)), networks["batch"][0](x))


def test_other_rows_say_why_they_are_empty() -> None:
    protocol = Protocol(model="own_subject:build")
    assert "not converted" in str(protocol.reason("spectral", 64))
    assert protocol.reason("group", 64) is None
    assert {task.normalizer for task in protocol.tasks()} == {"batch", "layer", "group"}


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ValueError, match=r"2 \(BatchNorm1d\) stays: LayerNorm2d takes images"):
        build_own("own_subject:vectors", "layer")
    with pytest.raises(ValueError, match="no batch normalization to convert"):
        build_own("own_subject:plain", "batch")
    assert isinstance(build_own("own_subject:vectors", "group").get_submodule("0.2"), nn.GroupNorm)


@pytest.mark.parametrize(("model", "words"), [("own_subject:plain", "no batch norm"), ("own_subject:x", "has no 'x'")])
def test_wrong_models_are_refused_before_any_run(model: str, words: str) -> None:
    pytest.importorskip("plotly", reason="plotly is in the extra evenorm[lab]")
    result = CliRunner().invoke(app, ["compare", "--model", model])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.slow
def test_report_of_an_own_network(here: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is in the extra evenorm[lab]")
    options = ["--norms", "batch,group", "--batch-size", "64", "--seeds", "1", "--lr", "0.1"]
    result = CliRunner().invoke(app, ["compare", "--model", "own_subject:build", *options])
    assert result.exit_code == 0, result.output
    assert "own_subject:build" in (here / "report.html").read_text()

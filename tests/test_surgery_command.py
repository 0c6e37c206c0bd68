"""The commands fold, recalibrate, convert and accelerate, with files in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evenorm.cli import app
from graphs import randomize

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

batches = [torch.randn(2, 3, 6, 6) + 3 for _ in range(2)]
"""
SHAPE = ["--input", "2,3,6,6"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that makes a model, and a checkpoint of it."""
    (tmp_path / "surgery_subject.py").write_text(MODULE)
    torch.save(plain().state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def plain() -> Any:
    return randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval()


def run(verb: str, *options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [verb, "surgery_subject:build", "--state-dict", "weights.pt", *options])
    assert result.exit_code == code, result.output
    return result.output


def test_folded_weights(here: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is in the extra evenorm[export]")
    from safetensors.torch import load_file

    output = run("fold", *SHAPE, "--out", "folded.safetensors", "--json")
    assert json.loads(output)["rows"][0]["work"] == "folded"
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU())
    folded.load_state_dict(load_file(here / "folded.safetensors"))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), plain()(x))


def test_folded_program(here: Path) -> None:
    assert "1 folded" in run("fold", *SHAPE, "--out", "folded.pt2")
    program: Any = torch.export.load(here / "folded.pt2")
    assert not [n for n in program.graph.nodes if "batch_norm" in str(n.target)]
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(program.module()(x), plain()(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_folded_onnx(here: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra evenorm[dev]")
    run("fold", *SHAPE, "--out", "folded.onnx")
    session = onnxruntime.InferenceSession(str(here / "folded.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 6, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain()(x).detach(), rtol=1e-4, atol=1e-5)


def test_recalibrated(here: Path) -> None:
    assert "1 recalibrated" in run("recalibrate", "--loader", "surgery_subject:batches", "--out", "new.safetensors")
    assert (here / "new.safetensors").exists()


def test_converted(here: Path) -> None:
    assert "1 converted" in run("convert", "--to", "group", "--groups", "2")
    assert "expected one of batch" in run("convert", "--to", "gruop", code=1)


def test_accelerated(here: Path) -> None:
    output = run("accelerate", *SHAPE, "--seconds", "0")
    assert "1 replaced, 1 activations fused" in output
    assert "inference:" in output
    assert "training:" in output
    assert json.loads(run("accelerate", *SHAPE, "--seconds", "0", "--json"))["seconds"].keys() == {
        "inference",
        "training",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*SHAPE, "--out", "model.txt"), ".safetensors, .pt2, .onnx"),
        ((*SHAPE, "--out", "nowhere/model.pt2"), "folder that exists"),
        (("--input", "2,x"), "expected a shape"),
    ],
)
def test_wrong_arguments(here: Path, options: tuple[str, ...], words: str) -> None:
    assert words in run("fold", *options, code=2)


def test_wrong_target(here: Path) -> None:
    result = CliRunner().invoke(app, ["fold", "surgery_subject:missing", *SHAPE])
    assert result.exit_code == 2
    assert "has no 'missing'" in result.output

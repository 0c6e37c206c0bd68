"""The commands fold, recalibrate, convert and accelerate, with files in and out."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

from evenorm import ProofError, SurgeryReport
from evenorm.cli import app
from evenorm.surgery import Proof
from evenorm.surgery.proof import Inputs
from evenorm.surgery.report import Row
from evenorm.surgery.timing import Times
from evenorm.surgery.writing import write
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

    found = json.loads(run("fold", *SHAPE, "--out", "folded.safetensors", "--json"))
    assert found["rows"][0]["work"] == "folded"
    assert found["written"]["path"] == "folded.safetensors"
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU())
    folded.load_state_dict(load_file(here / "folded.safetensors"))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), plain()(x))


@pytest.mark.parametrize("shape", ["2,3,6,6", "1,3,6,6"])
def test_folded_program(here: Path, shape: str) -> None:
    output = run("fold", "--input", shape, "--out", "folded.pt2")
    assert "1 folded" in output
    assert "written: folded.pt2, batch: any" in output
    program: Any = torch.export.load(here / "folded.pt2")
    assert not [n for n in program.graph.nodes if "batch_norm" in str(n.target)]
    for samples in (1, 2, 5):
        x = torch.randn(samples, 3, 6, 6)
        torch.testing.assert_close(program.module()(x), plain()(x))


class OfTwo(nn.Module):
    """Code that is true of two samples alone."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x.reshape(2, -1) * scale


def test_a_program_of_the_examples_batch_says_so(tmp_path: Path) -> None:
    inputs = Inputs((torch.randn(2, 3, 4),), {"scale": torch.ones(())})
    written = write(OfTwo(), inputs, tmp_path / "two.pt2")
    assert written.batch == "2"
    assert "specialized" in written.reason
    assert written.proof is not None
    program: Any = torch.export.load(tmp_path / "two.pt2")
    torch.testing.assert_close(program.module()(*inputs.args, scale=torch.ones(())), inputs.args[0].reshape(2, -1))


def test_a_wrong_program_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.export.export
    wrong = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    monkeypatch.setattr(torch.export, "export", lambda model, *args, **options: right(wrong, *args, **options))
    with pytest.raises(ProofError, match="exported program differs"):
        write(plain()[:1], Inputs((torch.randn(2, 3, 6, 6),)), tmp_path / "wrong.pt2")
    assert not (tmp_path / "wrong.pt2").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_folded_onnx(here: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra evenorm[dev]")
    run("fold", *SHAPE, "--out", "folded.onnx")
    session = onnxruntime.InferenceSession(str(here / "folded.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape == ["batch", 3, 6, 6]
    for x in (torch.randn(2, 3, 6, 6), torch.randn(7, 3, 6, 6)):
        (found,) = session.run(None, {given.name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), plain()(x).detach(), rtol=1e-4, atol=1e-5)


def test_recalibrated(here: Path) -> None:
    assert "1 recalibrated" in run("recalibrate", "--loader", "surgery_subject:batches", "--out", "new.safetensors")
    assert (here / "new.safetensors").exists()


def test_rows_fit_eighty_columns(here: Path) -> None:
    """Layers of one module stand under its path, so that no path is broken."""
    report = SurgeryReport("fold", proof=Proof(1.5, 40.0))
    outer = "model.encoder.stages.0.layers.0.residual.branch"
    report.did(
        f"{outer}.normalization", "BatchNorm2d", f"Identity, the rest in {outer}.convolution", "folded", Proof(1, 9)
    )
    report.refuse(f"{outer}.last", "BatchNorm2d", "what it reads is not the output of a convolution or Linear")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[:3] == [
        "fold: 1 folded, 1 left",
        outer,
        "  normalization  BatchNorm2d → Identity, the rest in convolution          1 of 9",
    ]
    assert lines[3].startswith("  last           BatchNorm2d left: what it reads is not the output of a")
    assert "whole model: outputs changed by 1.5 eps·max|y|, where rounding explains 40" in lines


def test_the_same_thing_done_often_is_one_line() -> None:
    report = SurgeryReport("accelerate", [Row(str(i), "ReLU", "relu", "fused") for i in range(3)])
    report.refuse("", "Net", "it is scripted")
    assert str(report).splitlines() == [
        "accelerate: 3 fused, 1 left",
        "0 and 2 more: ReLU → relu",
        "(root): Net left: it is scripted",
    ]


def test_converted(here: Path) -> None:
    assert "1 converted" in run("convert", "--to", "group", "--groups", "2")
    assert "expected one of batch" in run("convert", "--to", "gruop", code=1)


def test_accelerated(here: Path) -> None:
    output = run("accelerate", *SHAPE, "--seconds", "0")
    assert "1 replaced, 1 activations fused" in output
    assert "inference:" in output
    assert "training:" in output
    assert re.search(r"training: .* ms → .* ms, [\d.]+× \[[\d.]+, [\d.]+\]", output)
    seconds = json.loads(run("accelerate", *SHAPE, "--seconds", "0", "--json"))["seconds"]
    assert seconds.keys() == {"inference", "training"}
    for found in seconds.values():
        low, high = found["interval"]
        assert 0 < low <= found["ratio"] <= high


@pytest.mark.parametrize(("rounds", "outside"), [(6, 0), (8, 0), (9, 1), (20, 5), (100, 39), (5000, 2430)])
def test_the_interval_of_a_median(rounds: int, outside: int) -> None:
    """By the table of the sign test: so many rounds lie beyond each end."""
    random.seed(0)
    slower = random.sample(range(1, rounds + 1), rounds)
    found = Times.of([float(seconds) for seconds in slower], [1.0] * rounds)
    assert found.interval == (outside + 1, rounds - outside)
    assert found.ratio == found.before == (rounds + 1) / 2


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


@pytest.mark.parametrize("verb", ["fold", "accelerate"])
def test_an_input_that_the_model_does_not_take(here: Path, verb: str) -> None:
    printed = run(verb, "--input", "2,5,6,6", code=1)
    assert printed.startswith("the model does not run: RuntimeError: Given groups=1, weight of size [4, 3, 3, 3]")


def test_wrong_target(here: Path) -> None:
    result = CliRunner().invoke(app, ["fold", "surgery_subject:missing", *SHAPE])
    assert result.exit_code == 2
    assert "has no 'missing'" in result.output

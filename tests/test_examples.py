"""Every example runs, in a small form, and does what it says."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evenorm.doctor.plugin import assert_healthy

FOLDER = Path(__file__).parent.parent / "examples"
# Tested where processes are: tests/test_synced.py starts them.
ELSEWHERE = {"distributed_train"}

# What the trainers' and exporters' own code warns of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def example(name: str, *needed: str) -> ModuleType:
    """An example as a module."""
    for package in needed:
        pytest.importorskip(package, reason=f"the example uses {package}, which is not installed")
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_image_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = example("image_classifier", "sklearn").main(epochs=1)
    assert accuracy > 0.3
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.slow
def test_finetune_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    loss = example("finetune_transformer", "transformers", "accelerate").main(steps=4)
    said = capsys.readouterr().out
    assert 0 < loss < 2
    assert "5 normalizers replaced" in said
    assert "4 steps watched" in said


@pytest.mark.slow
def test_lightning_monitor() -> None:
    assert example("lightning_monitor", "lightning").main(steps=8) == ("EN112",)


def test_unet() -> None:
    assert example("unet").main(steps=12) > 0.1


def test_character_llama() -> None:
    assert example("character_llama").main(steps=15) < 3.3


def test_ragged_sequences() -> None:
    moved = example("ragged_sequences").main(steps=4)
    assert moved["with lengths"] < 1e-4
    assert moved["without"] > 0.1


@pytest.mark.slow
def test_fold_to_onnx(tmp_path: Path) -> None:
    module = example("fold_to_onnx", "onnx", "onnxscript", "onnxruntime")
    assert module.main(tmp_path / "folded.onnx") < 1e-4


def test_recalibrate_average() -> None:
    stale, own = example("recalibrate_average").main(steps=150)
    assert own < stale


@pytest.mark.parametrize("check", ["model_is_healthy", "optimizer_spares_the_normalizers"])
def test_the_checks_of_a_project(check: str) -> None:
    project = example("test_model")
    asked: Callable[[Any], None] = getattr(project, f"test_{check}")
    asked(assert_healthy)


def test_the_checks_of_a_project_watch_its_loop() -> None:
    example("test_model").test_training_loop_is_healthy()


def test_every_example_is_tested() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    untested = {file.stem for file in FOLDER.glob("*.py") if f'example("{file.stem}"' not in here}
    assert untested == ELSEWHERE


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_short_and_introduced(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 85
    assert lines[0].startswith('"""')
    assert lines[0].endswith(".")

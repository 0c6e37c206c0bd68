"""Examining ResNet-50 with one batch of 8 costs less than 20 forward passes, and the memory of two training steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the network is transformers'")


def figure(what: str) -> float:
    """One figure, measured in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("doctor_cost.py")), what]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found[what]


@pytest.mark.slow
def test_less_than_twenty_passes() -> None:
    assert figure("passes") < 20


@pytest.mark.slow
def test_less_than_the_memory_of_two_training_steps() -> None:
    assert figure("examine") < 2 * figure("step")

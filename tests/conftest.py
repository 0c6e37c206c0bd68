"""Seeds, Hypothesis' settings, and the order: what is smallest runs first."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from browser import browser

# Programs that tests start.
collect_ignore_glob = ["*rank.py", "rank_*.py"]

# A slow machine is no fault; the same examples on every run.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    # Triton asks once, when it is imported, whether it is to interpret: these tests run by themselves, pytest -m gpu.
    words = str(config.option.markexpr).split()
    if "gpu" in words and words[words.index("gpu") - 1] != "not" and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, closed after each module: Playwright keeps an event loop running that other tests would meet."""
    with browser() as started:
        yield started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_tiny.py")

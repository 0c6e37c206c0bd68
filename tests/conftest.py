"""Seeds, Hypothesis' settings, and the order: what is smallest runs first."""

import pytest
import torch
from hypothesis import settings

# A slow machine is no fault; the same examples on every run.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_tiny.py")

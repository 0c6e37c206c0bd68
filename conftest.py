"""Names that the docstrings' examples use without importing them."""

from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, nn=nn)

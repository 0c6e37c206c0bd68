"""A pytest plugin: the fixture ``assert_healthy``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import examine

__all__ = ["assert_healthy"]


@pytest.fixture(name="assert_healthy")
def _fixture() -> Callable[..., Examination]:
    """``assert_healthy(model, batch, …)``, with the arguments of :func:`evenorm.examine`."""
    return assert_healthy


def assert_healthy(*args: Any, warnings: bool = False, **options: Any) -> Examination:
    """Fail with the findings: an error, or with ``warnings`` a warning; and if the model does not run the batch."""
    found = examine(*args, **options)
    wrong = [*found.of("error"), *(found.of("warning") if warnings else ())]
    if wrong or found.failure is not None:
        lines = [f"{finding}\n    {finding.advice}" for finding in wrong]
        lines += [] if found.failure is None else [found.failure]
        pytest.fail("\n".join([found.summary(), *lines]), pytrace=False)
    return found

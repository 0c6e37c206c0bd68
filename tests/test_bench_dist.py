"""The suite ``dist`` of the benchmark: real processes, gated."""

from __future__ import annotations

import pytest

from evenorm.bench import dist
from evenorm.bench.peers import OURS


@pytest.mark.slow
@pytest.mark.dist
def test_a_quick_run_is_gated_and_timed() -> None:
    (row,) = dist.measure(0.01, quick=True)
    assert row.suite == "dist"
    assert row.seconds()
    assert row.timings["all_reduce"].ratio is not None
    # Torch's layer wants a GPU.
    assert "expected input tensor" in (row.timings["torch"].absent or "")
    ours, plain = (row.timings[name].error for name in (OURS, "all_reduce"))
    assert ours is not None
    assert plain is not None
    # E[x²] − E[x]² at ten deviations from zero.
    assert ours < plain < 1e-4

"""The extension among threads and in forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import evenorm
from kernels_here import WITHOUT_EXTENSION

pytestmark = pytest.mark.skipif(WITHOUT_EXTENSION, reason="the C++ extension is not built")

FORKED = """
import os, signal, numpy, torch, evenorm
torch.set_num_threads(2)
torch.manual_seed(0)
layer = evenorm.BatchNorm2d(8, activation="relu", track_running_stats=False)
x, r = torch.randn(8, 8, 64, 64), torch.randn(8, 8, 64, 64)
with torch.no_grad():
    expected = layer(x, residual=r).numpy().copy()  # the pool has its threads now
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        found = layer(x, residual=r).numpy()
        os._exit(0 if numpy.array_equal(found, expected) else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_hang() -> None:
    """The child has none of the pool's threads; torch itself would wait for them."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stdout.strip() == "0", found.stdout + found.stderr


def work(seed: int) -> tuple[Tensor, ...]:
    """A training step of a layer of its own."""
    generator = torch.Generator().manual_seed(seed)
    layer = evenorm.GroupNorm(4, 16, activation="silu")
    x = torch.randn(4, 16, 40, 40, generator=generator).requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])


def test_several_python_threads_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [work(seed) for seed in range(8)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(8)))
    finally:
        torch.set_num_threads(before)
    for mine, alone in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, alone, strict=True))


def test_other_threads_run_meanwhile() -> None:
    """The GIL is released: while one call works this thread goes on."""
    x = torch.randn(1_500_000, dtype=torch.float64)
    layer = evenorm.LayerNorm(x.shape, elementwise_affine=False, activation="gelu")
    layer(x[:8].repeat(x.numel() // 8))
    span: list[float] = []

    def call() -> None:
        with torch.no_grad():
            span.append(time.perf_counter())
            layer(x)
            span.append(time.perf_counter())

    other = threading.Thread(target=call)
    ticks: list[float] = []
    other.start()
    while other.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    other.join()
    started, ended = span
    # The middle half lies inside the extension for sure.
    inside = [t for t in ticks if started + (ended - started) / 4 < t < ended - (ended - started) / 4]
    assert len(inside) >= 3, f"{len(inside)} of {len(ticks)} in {ended - started:.3f} s"

"""Real processes over gloo: start them, wait for all, show what a failing one said."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "run_ranks"]

WORKER = Path(__file__).with_name("rank.py")


class Ended(NamedTuple):
    """How one process ended."""

    code: int
    said: str


def run_ranks(
    count: int, *checks: str, timeout: float = 240, expect_failure: bool = False, worker: Path = WORKER
) -> list[Ended]:
    """Run checks of ``rank.py``, or another script, in so many processes; fail with the words of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        started = [_start(rank, count, folder, worker, checks) for rank in range(count)]
        ended = []
        for process in started:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                for other in started:
                    other.kill()
                said, _ = process.communicate()
                said += f"\nkilled after {timeout} s"
            ended.append(Ended(process.returncode, said))
    if not expect_failure:
        failed = [f"rank {k} ended with {e.code}:\n{e.said}" for k, e in enumerate(ended) if e.code]
        assert not failed, "\n".join(failed)
    return ended


def _start(rank: int, count: int, folder: str, worker: Path, checks: tuple[str, ...]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "STORE": str(Path(folder, "store")),
        "OMP_NUM_THREADS": "1",
        # No name of this machine need resolve.
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.Popen(
        [sys.executable, str(worker), *checks],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

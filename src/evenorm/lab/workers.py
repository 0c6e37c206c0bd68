"""Independent runs in parallel processes, which stop cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# What a worker process was started with.
_shared: Any = None
_stop: Event | None = None


def _begin(shared: Any, stop: Event) -> None:
    import torch

    global _shared, _stop
    _shared, _stop = shared, stop
    torch.set_num_threads(1)


def _do(work: Callable[[Any, Any, Callable[[], bool]], Any], task: Any) -> Any:
    assert _stop is not None
    return work(_shared, task, _stop.is_set)


def available() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gather(
    work: Callable[[Any, Task, Callable[[], bool]], Result],
    tasks: Sequence[Task],
    shared: Any,
    workers: int,
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Yield each task with its result, or with the exception that it raised, as they finish.

    ``work(shared, task, stopped)`` runs in another process on one thread; it should return or
    raise soon after ``stopped()`` has become true. Closing the generator, as an exception such as
    KeyboardInterrupt in the caller does, stops all of them.
    """
    # Neither fork, which hangs once OpenMP has run, nor a worker that answers Ctrl-C by itself:
    # a started process inherits that the signal is ignored.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), spawn, _begin, (shared, stop))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        futures = {pool.submit(_do, work, task): task for task in tasks}
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for future in as_completed(futures):
            fault = future.exception()
            if isinstance(fault, Exception):
                yield futures[future], fault
            else:
                yield futures[future], future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)

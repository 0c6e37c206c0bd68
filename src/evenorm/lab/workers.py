"""Independent runs in parallel processes, which stop cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
    # Not fork, which hangs once OpenMP has run.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), spawn, _begin, (shared, stop))
    try:
        with _undisturbed():
            futures = {pool.submit(_do, work, task): task for task in tasks}
        for future in as_completed(futures):
            fault = future.exception()
            if isinstance(fault, Exception):
                yield futures[future], fault
            else:
                yield futures[future], future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _undisturbed() -> Generator[None, None, None]:
    """Start processes that leave Ctrl-C to this one, which answers it when all have started."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    # A started process inherits what its starter has blocked, but no handler.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt

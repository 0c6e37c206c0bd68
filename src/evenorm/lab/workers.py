"""Independent runs in parallel processes, which stop cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Stopped(Exception):
    """The run was asked to stop."""


# Set in the processes of a pool when it closes; another executor's have none.
_stop: Event | None = None


def _begin(stop: Event) -> None:
    import torch

    global _stop
    _stop = stop
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def check() -> None:
    """Give a long run the chance to end early; it calls this every step.

    Raises:
        Stopped: the pool that this process belongs to closes.
    """
    if _stop is not None and _stop.is_set():
        raise Stopped


def available() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Open so many processes of one thread each; leaving the context stops what they do."""
    # Not fork, which hangs once OpenMP has run.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    pool = ProcessPoolExecutor(workers, spawn, _begin, (stop,))
    try:
        yield pool
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def gather(
    executor: Executor, work: Callable[[Task], Result], tasks: Sequence[Task]
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Yield each task with its result, or with the exception that it raised, as they finish.

    The executor is one of :func:`processes` or any other that makes ``concurrent.futures.Future``. Closing the
    generator, as an exception such as KeyboardInterrupt in the caller does, cancels what has not begun.
    """
    futures: dict[Future[Result], Task] = {}
    try:
        with _undisturbed():
            for task in tasks:
                futures[executor.submit(work, task)] = task
        for future in as_completed(futures):
            fault = future.exception()
            if isinstance(fault, Exception):
                yield futures[future], fault
            else:
                yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start processes that leave Ctrl-C to this one, which answers it when all have started."""
    if threading.current_thread() is not threading.main_thread():
        # Signals come to the main thread alone.
        yield
        return
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

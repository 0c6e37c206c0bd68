"""Micro-batches as virtual ranks: each in a thread of its own, all at the same layer before any goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from evenorm.statistics.group import Group, SyncError

__all__ = ["Lane", "current", "lockstep"]

T = TypeVar("T")
R = TypeVar("R")
_local = threading.local()


def lockstep(step: Callable[[T], R], batches: Sequence[T]) -> list[R]:
    """Run a step, forward and backward, on every micro-batch of a window, all at the same layer at the same time.

    At each layer with :class:`Accumulated` statistics a micro-batch waits for the others, forward and backward, and
    all of them are normalized by the moments of the whole window: outputs and gradients are those of one big batch,
    through networks of any depth. The micro-batches take turns, in order, so results are the same at every run; their
    activations are in memory at the same time.

    Args:
        step: takes one micro-batch; computes the loss and calls ``backward()`` itself. It runs in a thread that
            inherits whether gradients are recorded, and opens other contexts (autocast) itself.
        batches: the micro-batches of one window.

    Returns:
        What the steps returned, in order.

    Raises:
        SyncError: the steps do not make the same calls.
        Exception: what a step raised; the others are stopped.

    >>> from evenorm import Accumulated, BatchNorm1d
    >>> layer = BatchNorm1d(2, statistics=Accumulated(2), affine=False)
    >>> halves = torch.tensor([[0.0, 1.0], [4.0, 5.0]]).chunk(2)
    >>> [y.round().tolist() for y in lockstep(layer, halves)]
    [[[-1.0, -1.0]], [[1.0, 1.0]]]
    """
    if not batches:
        raise ValueError("lockstep: expected at least one micro-batch, got none")
    turns = _Turns(len(batches))
    results: list[Any] = [None] * len(batches)
    recording = torch.is_grad_enabled()

    def run(lane: Lane, batch: T) -> None:
        _local.lane = lane
        # A device's gradients have one thread of their own, in which two lanes could not wait for each other.
        with torch.autograd.set_multithreading_enabled(False), torch.set_grad_enabled(recording):
            results[lane.index] = step(batch)

    threads = [
        threading.Thread(target=turns.take, args=(k, run, Lane(turns, k), batch), name=f"lockstep {k}", daemon=True)
        for k, batch in enumerate(batches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.fault is not None:
        raise turns.fault
    return results


def current() -> Lane | None:
    """The lane that this thread runs, if any."""
    return getattr(_local, "lane", None)


@dataclass(eq=False)
class _Turns:
    """Whose turn it is, and what was given in this round."""

    size: int
    turn: int = 0
    fault: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    finished: set[int] = field(default_factory=set)
    given: dict[int, list[Tensor]] = field(default_factory=dict)
    rounds: list[Tensor] = field(default_factory=list)

    def take(self, index: int, run: Callable[..., None], *arguments: Any) -> None:
        """Run a lane from its first turn to its end, and let the others know how it ended."""
        try:
            self.wait(index)
            run(*arguments)
        except BaseException as fault:
            self.fault = self.fault or fault
        self.finished.add(index)
        self.pass_on(index)

    def wait(self, index: int) -> None:
        """Until it is this lane's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn == index or self.fault is not None)
        if self.fault is not None:
            raise SyncError("another micro-batch failed") from self.fault

    def pass_on(self, index: int) -> None:
        """To the next lane that has not finished."""
        with self.changed:
            waiting = [(index + k) % self.size for k in range(1, self.size + 1)]
            self.turn = next((k for k in waiting if k not in self.finished), -1)
            self.changed.notify_all()


@dataclass(frozen=True, eq=False)
class Lane:
    """One micro-batch among those in lockstep: a rank of a group, perhaps within each of several processes."""

    turns: _Turns
    index: int
    processes: Group | None = None

    @property
    def size(self) -> int:
        """How many micro-batches there are, in all processes."""
        return self.turns.size * (1 if self.processes is None else self.processes.size)

    @property
    def leads(self) -> bool:
        """Whether this is the first of the micro-batches, which writes what they share."""
        return self.index == 0

    def gather(self, packet: Tensor) -> Tensor:
        """Every lane's packet, after all have come here; then those of all processes, in one collective."""
        turns = self.turns
        mine = turns.given.setdefault(self.index, [])
        mine.append(packet.detach())
        turns.pass_on(self.index)
        turns.wait(self.index)
        calls = [len(turns.given.get(k, ())) for k in range(turns.size)]
        if min(calls) < len(mine):
            raise SyncError(
                f"lockstep: the micro-batches synchronize {calls} times; every one must call the same layers"
            )
        # The first lane is the first to go on.
        if self.leads:
            turns.rounds.append(self._gathered([turns.given[k][len(mine) - 1] for k in range(turns.size)]))
        return turns.rounds[len(mine) - 1]

    def _gathered(self, rows: list[Tensor]) -> Tensor:
        if len({row.shape for row in rows}) > 1:
            raise SyncError("lockstep: the micro-batches synchronize layers of different sizes")
        stacked = torch.stack(rows)
        if self.processes is None:
            return stacked
        return self.processes.gather(stacked.reshape(-1)).reshape(self.size, -1)

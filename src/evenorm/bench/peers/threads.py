"""One thread beside all of them, in the same run: torch's number of threads is set around each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from evenorm.bench.peers import Outputs, Variant

__all__ = ["Single", "many", "one", "single"]

Found = TypeVar("Found")

_ONE = ", 1 thread"


def one(name: str) -> str:
    """The name of a variant where it has one thread."""
    return name + _ONE


def many(name: str) -> str | None:
    """The name with all threads of a variant that has one, or ``None``.

    >>> many(one("torch")), many("torch")
    ('torch', None)
    """
    return name.removesuffix(_ONE) if name.endswith(_ONE) else None


def single(call: Callable[[], Found]) -> Callable[[], Found]:
    """A call on one thread."""
    threads = torch.get_num_threads()

    def alone() -> Found:
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return alone


class Single:
    """A variant on one thread."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed."""
        return single(self.variant.call(direction))

    def outputs(self) -> Outputs:
        """What is compared with the reference: on one thread others may give other bits."""
        return single(self.variant.outputs)()

"""The record of a running loop: what a monitor saw from one step of the optimizer to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from evenorm.doctor.trace import Call

__all__ = ["Forward", "Record", "SiteCall", "Step"]


@dataclass
class Forward:
    """One pass through the whole model.

    Attributes:
        training: the model's own mode.
        gradients: whether gradients were recorded.
        pending: whether an earlier pass still waited for its gradients.
        backward: whether gradients have come back through its outputs.
    """

    training: bool
    gradients: bool
    pending: bool
    backward: bool = False


@dataclass(frozen=True)
class SiteCall:
    """One call of a normalizer.

    Attributes:
        path: of the site.
        shape: of the input.
        training, momentum: the site's mode and momentum.
        gradients: whether the pass that it belongs to recorded gradients.
        forward: which of the step's passes it belongs to; ``None`` if a part of the model was called by itself.
        recomputed: whether it happened in a backward pass (activation checkpointing).
    """

    path: str
    shape: tuple[int, ...]
    training: bool
    momentum: float | None
    gradients: bool
    forward: int | None
    recomputed: bool


@dataclass
class Step:
    """What happened between two steps of the optimizer.

    Attributes:
        forwards: passes through the whole model, in order.
        calls: of the normalizers, in order.
        updates: how often each site's running statistics moved, by path; sites that did not move are left out.
        details: the calls with their batch moments, at the steps that were measured in detail.
        gradients: norms of the normalizers' gradients, at the steps that were measured in detail.
        finite: whether the gradients of the normalizers' parameters were finite.
    """

    forwards: list[Forward] = field(default_factory=list)
    calls: list[SiteCall] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    details: list[Call] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    finite: bool = True


@dataclass
class Record:
    """The steps in order; what followed the last one is the tail.

    ``missing`` and ``unexpected`` are the keys that checkpoints lacked, or had in excess, that were loaded meanwhile;
    ``first_broken`` is the number of the first step whose gradients were not finite.
    """

    steps: list[Step] = field(default_factory=list)
    tail: Step = field(default_factory=Step)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    first_broken: int | None = None

    def __iter__(self) -> Iterator[Step]:
        """All steps, and the tail."""
        yield from self.steps
        yield self.tail

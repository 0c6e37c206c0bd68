"""The record of a running loop: what a monitor saw from one step of the optimizer to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from evenorm.doctor.trace import Call

__all__ = ["Forward", "Measured", "Record", "SiteCall", "Step"]

# Measured steps of a site that are kept, with excerpts of its inputs.
KEPT = 3


@dataclass
class Forward:
    """One pass through the whole model.

    Attributes:
        training: the model's own mode.
        gradients: whether gradients were recorded.
        pending: whether an earlier pass still waited for its gradients.
        to_inputs: whether its inputs ask for a gradient.
        backward: whether gradients have come back through its outputs.
        penalized: whether the gradient of its inputs was taken so that it can be differentiated again.
    """

    training: bool
    gradients: bool
    pending: bool
    to_inputs: bool = False
    backward: bool = False
    penalized: bool = False


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
        number: of the step, from zero.
        forwards: passes through the whole model, in order.
        calls: of the normalizers, in order.
        updates: how often each site's running statistics moved, by path; sites that did not move are left out.
        names, norms: of the parameters' gradients. The norms are read late, since reading waits for the device.
    """

    number: int = 0
    forwards: list[Forward] = field(default_factory=list)
    calls: list[SiteCall] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    norms: Tensor | None = None

    @property
    def gradients(self) -> dict[str, float]:
        """The norm of each gradient by the parameter's name."""
        return {} if self.norms is None else dict(zip(self.names, self.norms.tolist(), strict=True))

    @property
    def finite(self) -> bool:
        """Whether the gradients were."""
        return self.norms is None or bool(self.norms.isfinite().all())


@dataclass(frozen=True)
class Measured:
    """The calls of one site in one step, in detail."""

    step: int
    calls: list[tuple[SiteCall, Call]]


@dataclass
class Record:
    """The steps in order; what followed the last one is the tail.

    Attributes:
        measured: by path, the newest steps in which a site was measured in detail.
        missing, unexpected: keys that checkpoints lacked, or had in excess, that were loaded meanwhile.
        broken: the first step that is no longer kept and whose gradients were not finite.
    """

    steps: list[Step] = field(default_factory=list)
    tail: Step = field(default_factory=Step)
    measured: dict[str, deque[Measured]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    broken: int | None = None

    def __iter__(self) -> Iterator[Step]:
        """All steps, and the tail."""
        yield from self.steps
        yield self.tail

    @property
    def first_broken(self) -> int | None:
        """The number of the first step whose gradients were not finite."""
        numbers = [step.number for step in self.steps if not step.finite]
        return min((*numbers, *(() if self.broken is None else (self.broken,))), default=None)

    def measure(self, noted: SiteCall, call: Call) -> None:
        """Add a call that was measured in the step that runs."""
        steps = self.measured.setdefault(noted.path, deque(maxlen=KEPT))
        if not steps or steps[-1].step != self.tail.number:
            steps.append(Measured(self.tail.number, []))
        steps[-1].calls.append((noted, call))

    def close(self, most: int) -> None:
        """End the step that runs; of more than ``most`` the first and the last ones are kept."""
        self.steps.append(self.tail)
        self.tail = Step(self.tail.number + 1)
        if len(self.steps) > most:
            gone = self.steps.pop(most // 2)
            if self.broken is None and not gone.finite:
                self.broken = gone.number

"""A row: what was measured of one case, one pass and one kind of memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from evenorm.bench.interval import Interval
from evenorm.bench.peers import OURS, OURS_COMPILED
from evenorm.bench.peers.threads import one
from evenorm.bench.roof import COPY, STREAM

__all__ = ["LARGE", "PASSES", "Descent", "Row", "Timing"]

LARGE = 100_000
"""Rows of more elements enter the means; smaller ones measure the cost of a call."""

# As headings name them.
PASSES = {
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
    "training": "training step",
    "inference": "inference",
}

# Slower than torch means by more than this share of its time and by more than these seconds.
_SLOWER_SHARE, _SLOWER_SECONDS = 0.10, 3e-6


@dataclass
class Timing:
    """One variant of a row."""

    seconds: Interval | None = None
    ratio: Interval | None = None
    """Its time over ours: above 1, ours is faster."""
    excess: Interval | None = None
    """Our time less its time, in seconds."""
    peak: int | None = None
    """Bytes held at the most during a call, beyond its inputs."""
    error: float | None = None
    """The worst error of an output, in units of the output's largest value."""
    share: float | None = None
    """The worst error as a share of its bound."""
    errors: dict[str, float] = field(default_factory=dict)
    """The largest error of each output."""
    absent: str | None = None
    """Why it was not timed."""


@dataclass(frozen=True)
class Descent:
    """The steps that come before a training step is timed: how many, the learning rate, torch's first and last loss."""

    steps: int
    rate: float
    first: float
    last: float

    def __str__(self) -> str:
        return f"rate {self.rate:g}, loss {self.first:.4g} → {self.last:.4g} in {self.steps}"


@dataclass
class Row:
    """A case, a pass (forward, backward, both; training and inference for models), fresh or reused memory."""

    suite: str
    """The suite, and what is fused where that is ``fused``: ``fused norm+add+relu``."""
    title: str
    network: str
    layer: str
    size: str
    dtype: str
    training: bool
    direction: str
    memory: str
    elements: int
    bytes: int
    copies: float
    timings: dict[str, Timing]
    sweeps: int = 1
    cached: bool = False
    """Whether input and output lie in the last-level cache together."""
    descent: Descent | None = None
    """Of a training step: in which both kinds of layers gave the same losses."""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from every other row."""
        return (self.suite, self.title, self.network, self.size, self.direction, self.memory)

    @property
    def large(self) -> bool:
        """Whether its time is that of the elements, not of the call."""
        return self.elements > LARGE

    @property
    def ours(self) -> Timing:
        """Our variant."""
        return self.timings[OURS]

    def seconds(self, name: str = OURS) -> float | None:
        """A variant's median time."""
        timing = self.timings.get(name)
        return None if timing is None or timing.seconds is None else timing.seconds.value

    def ratio(self, name: str) -> float | None:
        """A variant's time over ours."""
        timing = self.timings.get(name)
        return None if timing is None or timing.ratio is None else timing.ratio.value

    @property
    def rate(self) -> float | None:
        """GB/s of the bytes that cannot be avoided."""
        seconds = self.seconds()
        return None if not seconds or not self.copies else 2 * self.bytes * self.copies / seconds / 1e9

    def share_of(self, roof: str = COPY) -> float | None:
        """The roof's time for these bytes over our time."""
        mine, floor = self.seconds(), self.seconds(roof)
        return None if not mine or not floor else floor * self.copies / mine

    @property
    def compiled_ratio(self) -> float | None:
        """Torch's layer compiled over our layer compiled."""
        ours, theirs = self.seconds(OURS_COMPILED), self.seconds("compile")
        return None if not ours or not theirs else theirs / ours

    @property
    def slower(self) -> bool:
        """Slower than torch eager by more than 10 % or 3 µs, whichever is larger, with 97.5 % confidence."""
        timing = self.timings.get("torch")
        if timing is None or timing.excess is None or timing.seconds is None:
            return False
        return timing.excess.low > max(_SLOWER_SHARE * timing.seconds.value, _SLOWER_SECONDS)

    def peers(self) -> dict[str, Timing]:
        """The variants but ours and the roofs."""
        others = {OURS, COPY, STREAM, one(COPY)}
        return {name: timing for name, timing in self.timings.items() if name not in others}

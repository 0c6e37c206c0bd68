"""Where statistics come from, in the form that the engine asks: one average, and what it is composed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Self

    from evenorm.statistics.accumulated import Accumulated
    from evenorm.statistics.average import Batch, Cumulative, Frozen, Running
    from evenorm.statistics.renorm import Renorm
    from evenorm.statistics.synced import Synced

__all__ = ["Composed", "Source", "Statistics", "parts"]


class Source(NamedTuple):
    """A composition laid flat.

    Moments of this batch are merged over ranks (``synced``), then over micro-batches (``window``), then corrected
    toward the history (``renorm``), which is an ``average`` of what was merged.
    """

    average: Batch | Frozen | Running | Cumulative
    renorm: Renorm | None = None
    synced: Synced | None = None
    window: Accumulated | None = None

    @property
    def is_alone(self) -> bool:
        """Whether this batch's own moments normalize it."""
        return self.renorm is None and self.synced is None and self.window is None

    @property
    def is_merged(self) -> bool:
        """Whether moments of other ranks or micro-batches normalize with this batch's."""
        return self.synced is not None or (self.window is not None and self.window.gradients == "exact")

    @property
    def counts_batches(self) -> bool:
        """Whether micro-batches are normalized one by one, and a window of them is remembered at once."""
        return self.window is not None and self.window.gradients == "approximate"


@runtime_checkable
class Statistics(Protocol):
    """One choice of where mean and variance come from."""

    def __hash__(self) -> int:
        """Recipes are kept by their parts."""

    def remembers(self, training: bool) -> bool:
        """Whether a call normalizes with the history instead of this batch."""

    def on(self, base: Statistics) -> Statistics:
        """The same, with the layer's own average where none was named."""

    def choices(self) -> tuple[Statistics, ...]:
        """What a call chooses from: itself alone, or those of every domain."""

    def flat(self) -> Source:
        """The composition laid flat."""


def parts(statistics: Statistics) -> Iterator[Statistics]:
    """A composition and all that it is made of."""
    yield statistics
    for choice in statistics.choices():
        if choice is not statistics:
            yield from parts(choice)
    if isinstance(statistics, Composed) and statistics.of is not None:
        yield from parts(statistics.of)


_CONSTANT = "frozen statistics do not come from a batch; write Frozen() alone"
_TWICE = "it is the same twice; write it once"
_OUTSIDE = "Renorm corrects what was merged, so it stands outside: Renorm(of={outer}())"
_OUTERMOST = "PerDomain chooses a history, so it stands outermost: PerDomain({{'a': {outer}(), …}})"

# What means nothing, outer and inner, whatever stands between them.
_MEANINGLESS = {
    ("Renorm", "Batch"): "there is no history to correct toward; name one: Renorm(of=Running(0.1))",
    ("Renorm", "Frozen"): _CONSTANT,
    ("Synced", "Frozen"): _CONSTANT,
    ("Accumulated", "Frozen"): _CONSTANT,
    ("Renorm", "Renorm"): _TWICE,
    ("Synced", "Synced"): _TWICE,
    ("Accumulated", "Accumulated"): _TWICE,
    ("Synced", "Renorm"): _OUTSIDE,
    ("Accumulated", "Renorm"): _OUTSIDE,
    ("Renorm", "PerDomain"): _OUTERMOST,
    ("Synced", "PerDomain"): _OUTERMOST,
    ("Accumulated", "PerDomain"): _OUTERMOST,
    ("PerDomain", "PerDomain"): _TWICE,
}


def refuse_meaningless(outer: str, inner: Statistics | None) -> None:
    """Refuse a composition that means nothing, by name.

    Raises:
        ValueError: with the reason.
    """
    while inner is not None:
        if not isinstance(inner, Statistics):
            raise ValueError(f"{outer}: expected statistics to be made of, Running(0.1) for example, got {inner!r}")
        name = type(inner).__name__
        reason = _MEANINGLESS.get((outer, name))
        if reason is not None:
            raise ValueError(f"{outer}(of={name}(…)) means nothing: {reason.format(outer=outer)}")
        inner = inner.of if isinstance(inner, Composed) else None


@dataclass(frozen=True, repr=False)
class Composed:
    """Statistics of other statistics: ``of`` is what they are made of, the layer's own average unless given."""

    of: Statistics | None = field(default=None, kw_only=True)
    # Its place in a source.
    place: ClassVar[str]

    def __post_init__(self) -> None:
        refuse_meaningless(type(self).__name__, self.of)

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name), f.default) for f in sorted(fields(self), key=lambda f: f.name == "of")]
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value, usual in given if value != usual)})"
        )

    def remembers(self, training: bool) -> bool:
        """As what it is made of."""
        return self.of is not None and self.of.remembers(training)

    def choices(self) -> tuple[Self]:
        """Itself alone."""
        return (self,)

    def on(self, base: Statistics) -> Self:
        """The same, with a base at the bottom."""
        return replace(self, of=base if self.of is None else self.of.on(base))

    def flat(self) -> Source:
        """What it is made of, and this."""
        if self.of is None:
            raise ValueError(f"{type(self).__name__}: made of nothing yet; .on(Running(0.1)) gives it an average")
        return self.of.flat()._replace(**{self.place: self})  # type: ignore[arg-type]

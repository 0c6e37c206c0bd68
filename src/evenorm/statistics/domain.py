"""A history for each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evenorm.statistics.source import Source, Statistics, refuse_meaningless

__all__ = ["PerDomain"]


@dataclass(frozen=True, init=False)
class PerDomain:
    """A history for each domain; the call says which: ``layer(x, domain="night")``.

    Weight and bias are shared. The layer's buffers hold the histories of all domains one upon the other, in the order
    of the keys; a state dict with one history gives it to every domain.

    Args:
        members: the keys, or each key with its own statistics: ``{"day": Running(0.1), "night": Frozen()}``.

    Raises:
        ValueError: no key, one key twice, or a composition that means nothing.

    Source:
        Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation" (2019), section 3.1.

    >>> PerDomain(["day", "night"]).member("noon")
    Traceback (most recent call last):
    ValueError: there is no domain 'noon'; the domains are 'day', 'night'
    """

    members: tuple[tuple[str, Statistics | None], ...]

    def __init__(self, members: Sequence[str] | Mapping[str, Statistics | None]) -> None:
        if isinstance(members, str):
            raise ValueError(f"PerDomain: expected several keys, got the text {members!r}")
        pairs = tuple(members.items()) if isinstance(members, Mapping) else tuple((key, None) for key in members)
        keys = [key for key, _ in pairs]
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"PerDomain: expected keys, each once, got {keys}")
        for _, member in pairs:
            refuse_meaningless("PerDomain", member)
        object.__setattr__(self, "members", pairs)

    @property
    def keys(self) -> tuple[str, ...]:
        """The domains, in order."""
        return tuple(key for key, _ in self.members)

    def choices(self) -> tuple[Statistics, ...]:
        """The statistics of every domain that has its own."""
        return tuple(member for _, member in self.members if member is not None)

    def member(self, domain: str | None) -> tuple[int, Statistics]:
        """Place and statistics of a domain."""
        for place, (key, statistics) in enumerate(self.members):
            if key == domain and statistics is not None:
                return place, statistics
        known = ", ".join(map(repr, self.keys))
        if domain is None:
            raise ValueError(f"expected a domain at the call, domain=…; the domains are {known}")
        raise ValueError(f"there is no domain {domain!r}; the domains are {known}")

    def remembers(self, training: bool) -> bool:
        """Whether any of them does."""
        return any(member is not None and member.remembers(training) for _, member in self.members)

    def on(self, base: Statistics) -> PerDomain:
        """The same, with a base at the bottom of each."""
        return PerDomain({key: base if member is None else member.on(base) for key, member in self.members})

    def flat(self) -> Source:
        """There is none before a domain is chosen."""
        raise ValueError("PerDomain: the call must say which domain; take .member(key) of it")

    def __str__(self) -> str:
        return f"a history for each of {', '.join(self.keys)}"

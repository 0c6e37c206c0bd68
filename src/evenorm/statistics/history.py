"""What a layer remembers, and the window that it has begun."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evenorm.moments import Moments

__all__ = ["History", "Window"]


class Window(NamedTuple):
    """The micro-batches of an unfinished window: their moments, merged, and how many they are."""

    values: Tensor
    mean: Tensor
    M2: Tensor
    batches: Tensor

    @staticmethod
    def empty(shape: tuple[int, ...], device: torch.device | None = None) -> Window:
        """A window that has not begun."""
        count, mean, m2 = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        return Window(count, mean, m2, torch.zeros((), dtype=torch.long, device=device))

    @property
    def moments(self) -> Moments:
        """The value that merges."""
        return Moments(self.values, self.mean, self.M2)


class History(NamedTuple):
    """What a layer remembers.

    Attributes:
        mean, variance: the running averages.
        updates: how many batches were taken in.
        skipped: how many were not, because they held values that are not finite.
        values: how many values each average was made of, where it is that of a population.
        window: the micro-batches of an unfinished window, where statistics are accumulated.

    It is the state of the functional form too: a tree of tensors, that vmap can carry along.

    >>> History.fresh(3).variance
    tensor([1., 1., 1.])
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor | None = None
    skipped: Tensor | None = None
    values: Tensor | None = None
    window: Window | tuple[()] = ()

    @staticmethod
    def fresh(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> History:
        """Mean 0, variance 1, no updates."""
        mean = torch.zeros(shape, dtype=dtype, device=device)
        updates, skipped = (torch.zeros((), dtype=torch.long, device=device) for _ in range(2))
        values = torch.zeros_like(mean, dtype=torch.float64)
        return History(mean, torch.ones_like(mean), updates, skipped, values)

    def of(self, domain: int) -> History:
        """The history of one domain, as views, where the histories of all lie one upon the other."""
        updates, skipped, values = (None if part is None else part[domain] for part in self[2:5])
        window = Window(*(part[domain] for part in self.window)) if self.window else ()
        return History(self.mean[domain], self.variance[domain], updates, skipped, values, window)

    def become(self, new: History) -> None:
        """Write another history's numbers into this one's tensors."""
        for kept, value in zip(self[:5], new[:5], strict=True):
            if kept is not None and value is not None and kept is not value:
                kept.copy_(value)
        if self.window and new.window:
            for kept, value in zip(self.window, new.window, strict=True):
                kept.copy_(value)

    def like(self, other: History) -> History:
        """The same numbers in another history's dtypes."""
        return self._replace(mean=self.mean.to(other.mean.dtype), variance=self.variance.to(other.variance.dtype))

    def copied(self) -> History:
        """The same numbers in tensors of their own."""
        window = Window(*(part.clone() for part in self.window)) if self.window else ()
        updates, skipped, values = (None if part is None else part.clone() for part in self[2:5])
        return History(self.mean.clone(), self.variance.clone(), updates, skipped, values, window)

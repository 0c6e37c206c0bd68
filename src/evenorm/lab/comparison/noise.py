"""Whether a difference between two rows is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Noise:
    """What chance alone does to the rows of one experiment.

    Attributes:
        deviation: standard deviation over seeds, pooled over all rows.
        freedom: degrees of freedom of that estimate.
        resolution: the least difference that the measurement itself can tell.
    """

    deviation: float
    freedom: int
    resolution: float = 0.0

    def margin(self, seeds: int, others: int) -> float:
        r"""Return the difference of two means, over so many seeds each, up to which it is noise.

        .. math:: m = \max(t_{0.975, f} \cdot s \cdot \sqrt{1/n_1 + 1/n_2}, r)

        Without a repeated seed nothing is known of chance, and every difference is noise.

        Source:
            Fisher's least significant difference, with a floor.
        """
        if not self.freedom:
            return math.inf
        error = self.deviation * math.sqrt(1 / seeds + 1 / others)
        return max(student(self.freedom) * error, self.resolution)

    def hides(self, ours: Sequence[float], theirs: Sequence[float]) -> bool:
        """Whether the difference of two rows' means is within noise.

        >>> noise = pool([[0.97, 0.98, 0.99], [0.90, 0.92, 0.91]])
        >>> noise.hides([0.97, 0.98, 0.99], [0.90, 0.92, 0.91])
        False
        >>> pool([[0.97], [0.50]]).hides([0.97], [0.50])
        True
        """
        return abs(mean(ours) - mean(theirs)) <= self.margin(len(ours), len(theirs))


def pool(rows: Iterable[Sequence[float]], resolution: float = 0.0) -> Noise:
    r"""Pool the spread over seeds of all rows.

    .. math:: s^2 = \sum_i \sum_j (x_{ij} - \bar x_i)^2 / \sum_i (n_i - 1)
    """
    squares, freedom = 0.0, 0
    for values in rows:
        center = mean(values)
        squares += sum((value - center) ** 2 for value in values)
        freedom += len(values) - 1
    return Noise(math.sqrt(squares / max(1, freedom)), freedom, resolution)


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation over seeds; 0 for a single seed."""
    return stdev(values) if len(values) > 1 else 0.0


def student(freedom: int) -> float:
    """Return Student's t, two-sided 95 %: exact for 1 and 2 degrees of freedom, else within 1 %.

    Source:
        Abramowitz & Stegun, "Handbook of Mathematical Functions" (1964), 26.7.5.

    >>> [round(student(freedom), 2) for freedom in (1, 2, 16)]
    [12.71, 4.3, 2.12]
    """
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    return 1.960 + 2.372 / freedom + 2.822 / freedom**2 + 2.556 / freedom**3


def counting_error(accuracy: float, images: int) -> float:
    r"""Return the 95 % error of a difference of two like accuracies, each counted on so many images.

    .. math:: r = 1.96 \cdot \sqrt{2 p (1 - p) / n}

    >>> round(counting_error(0.97, 360), 4)
    0.0249
    """
    return 1.96 * math.sqrt(2 * accuracy * (1 - accuracy) / images)

"""How far running statistics lie from those of a batch's inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from evenorm.doctor.subject import Subject

__all__ = ["Distance", "far_statistics"]


class Distance(NamedTuple):
    """The middle channel's distance, and how much of it the batch's size explains.

    The distance is the larger of two: of the means, in the inputs' standard deviations, and of the logarithms of
    the standard deviations.
    """

    middle: float
    noise: float

    @property
    def beyond_noise(self) -> float:
        """What the batch's size does not explain."""
        return max(self.middle - self.noise, 0.0)


def far_statistics(subject: Subject) -> dict[str, Distance]:
    """The distance by path, for every batch norm that an evaluation pass reaches."""
    distances: dict[str, Distance] = {}
    if subject.evaluation is None:
        return distances
    for call in subject.evaluation.calls:
        mean, variance = call.site.running_mean, call.site.running_var
        if call.mean is None or call.variance is None or mean is None or variance is None:
            continue
        if mean.shape == call.mean.shape:
            deviation = (call.variance + 1e-12).sqrt()
            means = (mean.to(call.mean) - call.mean).abs() / deviation
            deviations = ((variance.to(call.mean) + 1e-12).sqrt() / deviation).log().abs()
            middle = float(torch.maximum(means, deviations).median())
            distances.setdefault(call.site.path, Distance(middle, 1.5 * max(call.values, 1) ** -0.5))
    return distances

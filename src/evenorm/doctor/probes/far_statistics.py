"""How far running means lie from the means of a batch's inputs, in the inputs' standard deviations."""

from __future__ import annotations

from evenorm.doctor.subject import Subject

__all__ = ["far_statistics"]


def far_statistics(subject: Subject) -> dict[str, float]:
    """The middle channel's distance by path, for every batch norm that an evaluation pass reaches."""
    distances: dict[str, float] = {}
    if subject.evaluation is None:
        return distances
    for call in subject.evaluation.calls:
        mean = call.site.running_mean
        if call.mean is None or call.variance is None or mean is None or mean.shape != call.mean.shape:
            continue
        distance = (mean.to(call.mean) - call.mean).abs() * (call.variance + 1e-12).rsqrt()
        distances.setdefault(call.site.path, float(distance.median()))
    return distances

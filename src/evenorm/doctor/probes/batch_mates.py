"""M1, batch-mate invariance: does a sample's answer depend on the samples beside it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenorm.doctor.modes import evaluate
from evenorm.doctor.subject import Subject

__all__ = ["BatchMates", "batch_mates", "batch_mates_in_evaluation"]

# A kernel may round differently for another number of rows; statistics of other samples change far more.
TOLERANCE = 1e-3
TOLERANCE_HALF = 3e-2


@dataclass(frozen=True)
class BatchMates:
    """How far a sample's answer moved, relative to the answers' size, when the samples beside it changed."""

    change: float
    tolerance: float

    @property
    def depends(self) -> bool:
        """Whether it moved by more than rounding."""
        return not self.change <= self.tolerance


def batch_mates(subject: Subject) -> BatchMates | None:
    """With every mode as it stands. ``None`` where it cannot be told: one sample, or random answers."""
    return _compared(subject, lambda model: None)


def batch_mates_in_evaluation(subject: Subject) -> BatchMates | None:
    """After ``eval()``, likewise."""
    return _compared(subject, evaluate)


def _compared(subject: Subject, prepare: Callable[[nn.Module], object]) -> BatchMates | None:
    inputs = subject.inputs
    if inputs is None or inputs.samples < 2:
        return None
    samples = inputs.samples
    kept = max(samples // 2, 1)
    whole = subject.answer(inputs, prepare)
    part = subject.answer(inputs.rows(torch.arange(kept)), prepare)
    if whole is None or part is None:
        return None
    found = _change(whole, part, samples, kept)
    if found is None or not found.depends:
        return found
    # Is it the samples beside it, or is the model random? Then the same batch twice differs too.
    again = subject.answer(inputs, prepare, seed=1)
    repeated = None if again is None else _change(whole, again, samples, samples)
    return found if repeated is not None and not repeated.depends else None


def _change(whole: list[Tensor], part: list[Tensor], samples: int, kept: int) -> BatchMates | None:
    """Compare the outputs that have a row per sample."""
    changes, half = [], False
    for a, b in zip(whole, part, strict=False):
        if a.dim() and b.dim() and a.shape[0] == samples and b.shape[0] == kept and a.shape[1:] == b.shape[1:]:
            half |= a.dtype in (torch.float16, torch.bfloat16)
            first, second = a[:kept].double(), b.double()
            if not (first.isfinite().all() and second.isfinite().all()):
                continue
            size = float(first.square().mean().sqrt())
            changes.append(float((first - second).abs().max()) / size if size else 0.0)
    return BatchMates(max(changes), TOLERANCE_HALF if half else TOLERANCE) if changes else None

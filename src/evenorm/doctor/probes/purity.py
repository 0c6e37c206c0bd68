"""M2, buffer purity: do running statistics stay as they are in an evaluation pass?"""

from __future__ import annotations

import torch

from evenorm.doctor.modes import evaluate
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import trace

__all__ = ["impure"]


def impure(subject: Subject) -> tuple[str, ...]:
    """Paths of the normalizers whose statistics an evaluation pass moved."""
    if subject.inputs is None:
        return ()
    kept = [site for site in subject.sites if site.remembers]
    with subject.experiment() as model:
        evaluate(model)
        before = [_statistics(site.running_mean, site.running_var) for site in kept]
        trace(model, subject.inputs, ())
        after = [_statistics(site.running_mean, site.running_var) for site in kept]
    return tuple(site.path for site, old, new in zip(kept, before, after, strict=True) if not _same(old, new))


def _statistics(*buffers: torch.Tensor | None) -> list[torch.Tensor]:
    return [buffer.detach().clone() for buffer in buffers if buffer is not None]


def _same(old: list[torch.Tensor], new: list[torch.Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(old, new, strict=True))

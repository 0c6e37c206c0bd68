"""M6, constant output: does a normalizer's output change at all when its input does?"""

from __future__ import annotations

import torch

from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Call

# x − mean, rounded in float32 and divided by the root of an eps of 1e-5; a normalizer that works moves by about 1.
ROUNDING = 1e-3

__all__ = ["constant_outputs"]


def constant_outputs(subject: Subject) -> tuple[Call, ...]:
    """The calls of normalizers whose statistics are of one value, and whose output another input leaves as it is."""
    if subject.trace is None:
        return ()
    with subject.experiment():
        return tuple(call for call in subject.trace.calls if call.values == 1 and _constant(call))


def _constant(call: Call) -> bool:
    site = call.site
    if not site.uses_batch(call.training):
        return False
    site.module.train(call.training)
    generator = torch.Generator().manual_seed(0)
    other = call.x + torch.randn(call.x.shape, generator=generator).to(call.x)
    try:
        with torch.no_grad():
            first, second = site.module(call.x), site.module(other)
    except Exception:
        # It raises on one value, as batch norm does: that is EN201's.
        return False
    if not isinstance(first, torch.Tensor):
        return False
    size = 1.0 if site.weight is None else float(site.weight.detach().abs().max())
    return float((first - second).abs().max()) <= ROUNDING * max(size, 1.0)

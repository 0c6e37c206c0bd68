"""M13, zero weight: does a normalizer multiply by w, or by 1 + w?"""

from __future__ import annotations

import torch

from evenorm.doctor.probes.alone import alone, answer, plain, sample
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["offsets"]


def offsets(subject: Subject) -> dict[str, float]:
    """What each site adds to its weight before it scales: 0 or 1, by path; sites that do neither are left out."""
    known: dict[object, float | None] = {}
    found = {}
    for site in subject.sites:
        weight = site.weight
        if weight is None:
            continue
        key = (type(site.module), tuple(weight.shape), site.kind, str(site.module.extra_repr()))
        if key not in known:
            known[key] = _offset(site, subject)
        offset = known[key]
        if offset is not None:
            found[site.path] = offset
    return found


def _offset(site: Site, subject: Subject) -> float | None:
    x, lone = sample(site, subject), alone(site)
    if x is None or lone is None or lone.weight is None:
        return None
    one = answer(plain(lone), x)
    with torch.no_grad():
        lone.weight.zero_()
    zero = answer(lone, x)
    if one is None or zero is None or one.shape != zero.shape:
        return None
    size = float((one - zero).abs().mean())
    at_zero = float(zero.abs().mean())
    if not size > 0:
        return None
    offset = at_zero / size
    return round(offset) if abs(offset - round(offset)) < 1e-3 and round(offset) in (0, 1) else None

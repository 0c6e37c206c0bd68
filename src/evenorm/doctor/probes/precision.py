"""M11, precision: what a normalizer makes of constant, tiny and large inputs, and of half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evenorm.doctor.probes.alone import alone, answer, plain, sample
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["Precision", "compute_dtype", "precision"]

# Two sizes of input at which every eps from 1e-13 to 1e-2 shows.
TINY = (1e-6, 1e-4)
# Squares of such values overflow in float16, whose largest value is 65504.
LARGE = 1000.0


@dataclass(frozen=True)
class Precision:
    """How one normalizer stands rounding.

    Attributes:
        eps: measured, under the root; ``None`` if none explains what was seen.
        constant: whether a constant input gives finite outputs in float32.
        constant_half: likewise in float16.
        large_half: relative error in float16 at inputs of a thousand; infinite if not finite.
    """

    eps: float | None
    constant: bool
    constant_half: bool
    large_half: float


def precision(subject: Subject) -> dict[str, Precision]:
    """The precision of every site that can be examined by itself, by path."""
    known: dict[object, Precision | None] = {}
    found = {}
    for site in subject.sites:
        shapes = tuple(tuple(p.shape) for p in site.module.parameters())
        key = (type(site.module), shapes, site.eps, site.training, str(site.module.extra_repr()))
        if key not in known:
            known[key] = _examined(site, subject)
        result = known[key]
        if result is not None:
            found[site.path] = result
    return found


def compute_dtype(site: Site, subject: Subject) -> torch.dtype:
    """The dtype of the activations that the site saw, or of its parameters."""
    calls = subject.trace.of(site) if subject.trace is not None else []
    tensors = (*site.module.parameters(), *site.module.buffers())
    held = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    return calls[0].dtype if calls else held


def _examined(site: Site, subject: Subject) -> Precision | None:
    x = sample(site, subject)
    wide, half = alone(site), alone(site, torch.float16)
    if x is None or wide is None or half is None:
        return None
    wide, half = plain(wide), plain(half)
    if not site.uses_batch():
        # What is constant for a fixed statistic is a channel whose variance is zero.
        for one in (wide, half):
            if one.running_var is not None:
                one.running_var.zero_()
        return Precision(None, _finite(answer(wide, x)), _finite(answer(half, x.half())), 0.0)
    constant = torch.zeros_like(x) if site.kind == "rms" else torch.full_like(x, 0.5)
    large = (x * LARGE).half()
    return Precision(
        _eps(wide, x),
        _finite(answer(wide, constant)),
        _finite(answer(half, constant.half())),
        _error(answer(wide, large.float()), answer(half, large)),
    )


def _finite(y: Tensor | None) -> bool:
    """An input that is refused does no harm."""
    return y is None or bool(y.isfinite().all())


def _error(expected: Tensor | None, found: Tensor | None) -> float:
    """Relative, in root mean square."""
    if expected is None or found is None:
        return 0.0
    if not found.isfinite().all():
        return float("inf")
    return float((found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def _eps(site: Site, x: Tensor) -> float | None:
    """Solve r² = s²(1 + ε) / (s² + ε) for ε, where r is how much an input of size s shrinks beside one of size 1."""
    unit = answer(site, x)
    if unit is None or not unit.isfinite().all():
        return None
    sizes = [_size(answer(site, unit * scale)) for scale in (1.0, *TINY)]
    if not sizes[0]:
        return None
    solved = []
    for scale, size in zip(TINY, sizes[1:], strict=True):
        ratio, square = (size / sizes[0]) ** 2, scale**2
        if not ratio > square:
            return None
        solved.append(square * (1 - ratio) / (ratio - square))
    first, second = solved
    return max(first, 0.0) if abs(first - second) <= 0.05 * abs(second) + 2e-14 else None


def _size(y: Tensor | None) -> float:
    return 0.0 if y is None else float(y.double().square().mean().sqrt())

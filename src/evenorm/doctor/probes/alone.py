"""One normalizer by itself: a copy that can be bent at will, and an input for it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["alone", "answer", "plain", "sample"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def alone(site: Site, dtype: torch.dtype = torch.float32) -> Site | None:
    """The site with a copy of its module, without hooks and in some dtype; ``None`` where there can be no copy."""
    module: Any = site.module
    if isinstance(module, torch.jit.ScriptModule) or any(t.is_meta for t in module.state_dict().values()):
        return None
    try:
        twin = copy.deepcopy(module)
    except Exception:
        # A parametrized weight is no leaf; a foreign class may hold anything.
        return None
    for name in HOOKS:
        getattr(twin, name).clear()
    return replace(site, module=twin.to(dtype))


def plain(site: Site) -> Site:
    """A lone site with γ = 1 and β = 0, so that its output is the normalized input."""
    with torch.no_grad():
        for tensor, value in ((site.weight, 1.0), (site.bias, 0.0)):
            if tensor is not None:
                tensor.fill_(value)
    return site


def sample(site: Site, subject: Subject) -> Tensor | None:
    """An input of ordinary size that the site takes: shaped like the one it saw, or as its parameters suggest."""
    lone = alone(site)
    if lone is None:
        return None
    seen = subject.trace.of(site) if subject.trace is not None else []
    shapes = [tuple(call.x.shape) for call in seen[:1]] or _shapes(site)
    generator = torch.Generator().manual_seed(0)
    device = next((t.device for t in site.module.state_dict().values()), torch.device("cpu"))
    for shape in shapes:
        x = torch.randn(shape, generator=generator).to(device)
        y = answer(lone, x)
        if y is not None and y.shape == x.shape:
            return x
    return None


def _shapes(site: Site) -> list[tuple[int, ...]]:
    """Shapes that the site's parameters and its kind suggest."""
    module: Any = site.module
    normalized = tuple(getattr(module, "normalized_shape", ()))
    sizes = [t.numel() for t in (site.weight, site.running_mean) if t is not None]
    named = (getattr(module, name, None) for name in ("num_features", "num_channels"))
    size = next((n for n in (*named, *sizes) if isinstance(n, int)), 16)
    if normalized:
        return [(4, 5, *normalized)]
    if site.kind in ("layer", "rms") and (site.behavior is None or site.behavior.axes == (-1,)):
        return [(4, 5, size)]
    side = max(2, math.isqrt(64 // size)) if size < 64 else 2
    spatial: list[tuple[int, ...]] = [(side, side), (side * side,), (side, side, side), ()]
    return [(8, size, *rest) for rest in spatial]


def answer(site: Site, x: Tensor) -> Tensor | None:
    """What the site makes of an input in its mode; ``None`` if it does not take it."""
    try:
        with torch.no_grad():
            y = site.module(x)
    except Exception:
        # A foreign class may raise anything at a shape that it does not take.
        return None
    return y if isinstance(y, Tensor) else None

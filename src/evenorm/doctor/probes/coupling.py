"""M9, cross-sample gradient: does a sample's output in training depend on the other samples' inputs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evenorm.doctor.inputs import tensors
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["coupling"]

# Enough to tell; a deep layer's maps stay small.
SAMPLES = 8


def coupling(subject: Subject, shapes: Mapping[Site, Sequence[int]]) -> dict[Site, float]:
    r"""The gradient of one sample's output with respect to the others' inputs, relative to that of its own.

    .. math:: \frac{\|\partial f(x_1) / \partial x_{j \ne 1}\|}{\|\partial f(x_1) / \partial x_1\|}

    Each normalizer is given random values of the shape named for it, in training. One that does not take them is
    left out.
    """
    found: dict[Site, float] = {}
    if subject.is_sharded:
        return found
    with subject.experiment() as model, torch.enable_grad():
        model.train()
        for site, (samples, *rest) in shapes.items():
            if samples < 2:
                continue
            x = torch.randn(min(samples, SAMPLES), *rest, device=_device(site)).requires_grad_()
            try:
                y = next(iter(tensors(site.module(x))))
                gradient = torch.autograd.grad((y[0] * torch.randn_like(y[0])).sum(), x)[0]
            except (RuntimeError, TypeError, ValueError, StopIteration):
                continue
            own = float(gradient[0].norm())
            if own:
                found[site] = float(gradient[1:].norm()) / own
    return found


def _device(site: Site) -> torch.device:
    return next((t.device for t in site.module.parameters()), torch.device("cpu"))

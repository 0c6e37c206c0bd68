"""How dropout changes the variances that batch norms see."""

from __future__ import annotations

import torch
from torch.nn.modules.dropout import _DropoutNd

from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Trace, trace

__all__ = ["dropout_shift"]


def dropout_shift(subject: Subject) -> dict[str, float]:
    """By path of each batch norm: the variance of its input with dropout over that without, in the middle channel.

    Everything else is in the model's training, with the same batch.
    """
    inputs = subject.inputs
    drops = [m for m in subject.model.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    if inputs is None or not drops or not any(site.kind == "batch" for site in subject.sites):
        return {}

    def run(dropping: bool) -> Trace:
        with subject.experiment() as model, torch.no_grad():
            model.train()
            for module in drops:
                module.train(dropping)
            return trace(model, inputs, subject.sites)

    with_, without = run(True), run(False)
    found: dict[str, float] = {}
    if with_.failure is not None or without.failure is not None:
        return found
    for a, b in zip(with_.calls, without.calls, strict=False):
        if a.site is b.site and a.variance is not None and b.variance is not None and a.site.kind == "batch":
            alive = b.variance > 1e-12 * b.variance.max()
            if bool(alive.any()):
                found.setdefault(a.site.path, float((a.variance[alive] / b.variance[alive]).median()))
    return found

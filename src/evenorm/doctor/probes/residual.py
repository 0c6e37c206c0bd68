"""Normalizers that stand on the residual stream itself: post-norm."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evenorm.doctor.inputs import tensors
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["post_norms"]

ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_, operator.add}


def post_norms(subject: Subject) -> tuple[str, ...]:
    """Paths of the layer and RMS norms that normalize a sum of a branch and another norm's output, in order."""
    inputs = subject.inputs
    sites = [site for site in subject.sites if site.kind in ("layer", "rms")]
    if inputs is None or len(sites) < 2:
        return ()
    found: dict[str, None] = {}
    watch = _Watch()
    with subject.experiment() as model, torch.no_grad():
        if subject.trains:
            model.train()
        for site in sites:
            site.module.register_forward_hook(_noting(site, watch, found), with_kwargs=True)
        with watch:
            try:
                inputs(model)
            except Exception:
                # The trace says what the model raised.
                return ()
    return tuple(found)


def _noting(site: Site, watch: _Watch, found: dict[str, None]) -> Any:
    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = next(iter(tensors((args, kwargs))), None)
        if x is not None and id(x) in watch.sums:
            found[site.path] = None
        if isinstance(output, Tensor):
            watch.normalized[id(output)] = output

    return note


class _Watch(TorchFunctionMode):
    """Notes the sums that have a normalized term. Tensors are kept, so that no other gets their identity."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ADDITIONS and any(id(term) in self.normalized for term in args) and isinstance(result, Tensor):
            self.sums[id(result)] = result
        return result

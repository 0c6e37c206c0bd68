"""Fixes that several rules offer."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from evenorm.doctor.finding import Fix
from evenorm.doctor.sites import Site

__all__ = ["assigned", "filled", "fused", "put_back", "spelled", "with_eps"]


def spelled(path: str) -> str:
    """A module of the model, as Python spells it."""
    return f"model.get_submodule({path!r})" if path else "model"


def assigned(site: Site, name: str, value: object) -> Fix:
    """An attribute of the module, set."""
    return Fix(f"{spelled(site.path)}.{name} = {value!r}", partial(setattr, site.module, name, value))


def with_eps(site: Site, eps: float) -> Fix | None:
    """Another eps; ``None`` where the module names none."""
    if site.eps is None:
        return None
    return Fix(f"{spelled(site.path)}.eps = {eps:g}", partial(site.set_eps, eps))


def filled(site: Site, value: float) -> Fix:
    """Every γ set to a value."""
    return Fix(f"{spelled(site.path)}.weight.data.fill_({value:g})", partial(_fill, site, value))


def _fill(site: Site, value: float) -> None:
    with torch.no_grad():
        if site.weight is not None:
            site.weight.fill_(value)


def put_back(model: nn.Module, before: Site, after: Site) -> Fix | None:
    """A layer as it was before it was exchanged, with today's tensors; ``None`` for the model itself."""
    if not after.path:
        return None
    call = f"model.set_submodule({after.path!r}, reference.get_submodule({after.path!r}))"
    return Fix(call, partial(_put_back, model, before, after))


def _put_back(model: nn.Module, before: Site, after: Site) -> None:
    module = copy.deepcopy(before.module)
    module.load_state_dict(after.module.state_dict(), strict=False)
    model.set_submodule(after.path, module.train(after.module.training))


def fused(module: nn.Module) -> Fix | None:
    """Our layer in the module's place, with the same parameters; ``None`` where we have no such layer."""
    from evenorm.surgery.recognize import Twin, recognize

    if not isinstance(recognize(module), Twin):
        return None
    return Fix("evenorm.accelerate(model)", partial(_accelerate, module))


def _accelerate(module: Any) -> None:
    from evenorm.surgery import accelerate

    accelerate(module)

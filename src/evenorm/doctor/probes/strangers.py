"""Normalizers that run inside a model without being a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from evenorm.doctor.modes import evaluate
from evenorm.doctor.sites import Site, find_sites
from evenorm.doctor.subject import Subject

__all__ = ["Stranger", "strangers"]


@dataclass(frozen=True)
class Stranger:
    """A normalizer that ``model.modules()`` does not list.

    Attributes:
        site: the normalizer; its path is that of the module of the model that called it.
        anew: whether each forward builds another one.
        learns: whether gradients reach parameters of it.
    """

    site: Site
    anew: bool
    learns: bool


def strangers(subject: Subject) -> list[Stranger]:
    """The strangers of one pass in evaluation, where what is registered nowhere stays in training."""
    if subject.inputs is None:
        return []
    first = _seen(subject)
    kept = {id(site.module) for site, _ in _seen(subject)} if first else set()
    return [Stranger(site, id(site.module) not in kept, learns) for site, learns in first]


def _seen(subject: Subject) -> list[tuple[Site, bool]]:
    found: list[tuple[Site, bool]] = []
    inputs = subject.inputs
    assert inputs is not None
    with subject.experiment() as model, torch.enable_grad(), _watched(model, found):
        evaluate(model)
        try:
            inputs(model)
        except Exception:
            # What ran before the model raised is seen all the same; the trace says that it raised.
            return found
    return found


@contextmanager
def _watched(model: nn.Module, found: list[tuple[Site, bool]]) -> Iterator[None]:
    own = {module: path for path, module in model.named_modules()}
    stack: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()
        caller = next((own[m] for m in reversed(stack) if m in own), None)
        if module in own or caller is None or any(site.module is module for site, _ in found):
            return
        for site in find_sites(module):
            # A part of a stranger that is no normalizer itself is met when it is called.
            if site.module is module:
                trained = any(p.requires_grad for p in module.parameters())
                learns = trained and isinstance(output, Tensor) and output.requires_grad
                found.append((Site(caller, module, site.kind, site.found, site.behavior), learns))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

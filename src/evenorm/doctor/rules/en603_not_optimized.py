"""A normalizer that no optimizer knows.

What it finds:
    Trainable weights of a normalizer in none of the optimizer's groups, although most of the trainable weights
    beside it are there.

Why it matters:
    An optimizer that was built before the normalizers were exchanged goes on stepping those that are gone. The new
    γ and β get gradients and never move; nothing reports it.

Instead:
    Build the optimizer last, after every conversion.

Fix:
    The weights join the optimizer in a group without weight decay.

References:
    Described for heads by the package torchtest2 (its project page)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look for each normalizer's weights in the optimizer."""
    optimizer = subject.optimizer
    if optimizer is None:
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    gone = len(stepped - {id(p) for p in subject.model.parameters()})
    normalizing = {id(p) for site in subject.sites for p in site.parameters.values()}
    for site in subject.sites:
        missing = {n: p for n, p in site.parameters.items() if p.requires_grad and id(p) not in stepped}
        if not missing or not _beside(subject.model, site, stepped, normalizing):
            continue
        stale = f"; {gone} tensors that it steps are no longer the model's" if gone else ""
        yield Symptom(
            site.path,
            f"{', '.join(missing)} require gradients and are in none of the optimizer's groups{stale}",
            "build the optimizer after the last change of the model",
            {"missing": sorted(missing), "stale tensors in the optimizer": gone},
            Fix(
                'optimizer.add_param_group({"params": [...], "weight_decay": 0.0})',
                partial(_join, optimizer, list(missing.values())),
            ),
        )


def _beside(model: nn.Module, site: Site, stepped: set[int], normalizing: set[int]) -> bool:
    """Whether most weights of the nearest module around it that are trainable and no normalizer's are stepped."""
    parts = site.path.split(".")
    for length in range(len(parts) - 1, -1, -1):
        around = model.get_submodule(".".join(parts[:length]))
        others = [p for p in around.parameters() if p.requires_grad and id(p) not in normalizing]
        if others:
            return sum(p.numel() for p in others if id(p) in stepped) > sum(p.numel() for p in others) / 2
    return False


def _join(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})


def _of(parameters: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.AdamW(parameters)}


def _before_exchange(model: nn.Module) -> dict[str, Any]:
    """An optimizer that knows other normalizers in their place."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    return _of([*weights, nn.Parameter(torch.ones(8))])


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def _head(model: nn.Module) -> dict[str, Any]:
    return _of([p for p in model.parameters() if p.shape == (2, 8)])


def _trainable(model: nn.Module) -> dict[str, Any]:
    return _of([p for p in model.parameters() if p.requires_grad])


def ailing() -> Iterator[Specimen]:
    """Left out."""
    yield Specimen("built before the normalizers were exchanged", _network(), options=_before_exchange)
    about = "only tensors of two axes were collected"
    yield Specimen(about, _network(), options=lambda model: _of([p for p in model.parameters() if p.dim() == 2]))


def healthy() -> Iterator[Specimen]:
    """In it, or left out with everything beside it."""
    yield Specimen("all of the model", _network(), options=lambda model: _of(model.parameters()))
    yield Specimen("only the head is trained", _network(), options=_head)
    frozen = _network()
    for module in frozen:  # type: ignore[attr-defined]
        module.requires_grad_(not isinstance(module, nn.LayerNorm))
    yield Specimen("frozen normalizers", frozen, options=_trainable)

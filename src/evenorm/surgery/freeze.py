"""freeze() and unfreeze(): normalizers that stay as they are, whatever mode the model is put into."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from evenorm.layers import Layer
from evenorm.layers.remembering import Remembering
from evenorm.statistics import Frozen
from evenorm.surgery.change import MEMORY, become, restore
from evenorm.surgery.fixed import is_normalizer
from evenorm.surgery.kinds import outside_of_torch
from evenorm.surgery.recognize import recognize
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.snapshot import atomic

__all__ = ["FROZEN", "Part", "freeze", "unfreeze"]

Part = Literal["both", "statistics", "affine"]
"""What is frozen: the running statistics, weight and bias, or both."""

FROZEN = "_evenorm_frozen"


@dataclass
class _Before:
    """What a frozen layer was: its class if freezing has changed it, and the parameters that were trained."""

    kind: type[nn.Module] | None
    alone: bool
    trained: tuple[str, ...]


def freeze(
    model: nn.Module,
    part: Part = "both",
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    inplace: bool = True,
    report: bool = False,
) -> Any:
    """Freeze running statistics, weight and bias of a model's normalizers, so that ``train()`` does not thaw them.

    Layers normalize with their running statistics in training too, and these never move; momentum and counters
    stay. Weight and bias stop asking for gradients. A batch norm of torch's becomes ours, in place.

    Args:
        model: any module.
        part: ``"both"``, ``"statistics"`` or ``"affine"``.
        where: which normalizers, by ``where(path, layer)``; all unless given.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    Raises:
        ValueError: no such part.

    >>> model = freeze(nn.Sequential(nn.BatchNorm1d(2))).train()
    >>> import torch
    >>> bool(torch.equal(model(torch.ones(4, 2)), model.eval()(torch.ones(4, 2))))
    True
    """
    if part not in ("both", "statistics", "affine"):
        raise ValueError(f"freeze: part must be 'both', 'statistics' or 'affine', got {part!r}")
    found = SurgeryReport("freeze")
    target = model if inplace else copy.deepcopy(model)
    with atomic(target):
        for path, layer in list(target.named_modules()):
            if is_normalizer(layer) and FROZEN not in layer.__dict__ and (where is None or where(path, layer)):
                _freeze(path, layer, part, found)
    return (target, found) if report else target


def _freeze(path: str, layer: nn.Module, part: Part, report: SurgeryReport) -> None:
    name, alone = type(layer).__name__, MEMORY not in layer.__dict__
    before = _Before(None, alone, ())
    if part != "affine":
        reason = _freeze_statistics(layer, before)
        if reason is not None:
            report.refuse(path, name, reason)
        elif before.kind is not None:
            report.did(path, name, f"{type(layer).__name__}, statistics frozen", "statistics frozen")
    if part != "statistics":
        trained = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
        before.trained = tuple(trained)
        for parameter in trained:
            layer.get_parameter(parameter).requires_grad_(False)
        if trained:
            report.did(path, name, f"{' and '.join(trained)} frozen", "affines frozen")
    if before.kind is not None or before.trained:
        layer.__dict__[FROZEN] = before


def _freeze_statistics(layer: nn.Module, before: _Before) -> str | None:
    """Freeze the history; or the reason why there is none to freeze."""
    if not isinstance(layer, (nn.modules.batchnorm._NormBase, Remembering)) or _is_frozen(layer):
        return None
    if layer._buffers.get("running_mean") is None:
        return "it keeps no running statistics"
    twin = recognize(layer)
    if isinstance(twin, str):
        return twin
    before.kind = type(layer)
    kind = outside_of_torch(type(layer) if twin is None else twin.kind)
    become(layer, kind, {"chosen": layer.__dict__.get("chosen"), "thawed": None})
    cast(Remembering, layer).freeze()
    return None


def _is_frozen(layer: nn.Module) -> bool:
    return isinstance(layer, Layer) and isinstance(layer.statistics, Frozen)


def unfreeze(model: nn.Module, *, inplace: bool = True, report: bool = False) -> Any:
    """Take :func:`freeze` back: statistics move again, and what was trained is trained.

    Args:
        model: a model of which something was frozen.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    >>> model = unfreeze(freeze(nn.Sequential(nn.BatchNorm1d(2))))
    >>> type(model[0]) is nn.BatchNorm1d, model[0].weight.requires_grad
    (True, True)
    """
    found = SurgeryReport("unfreeze")
    target = model if inplace else copy.deepcopy(model)
    with atomic(target):
        for path, layer in list(target.named_modules()):
            before: _Before | None = layer.__dict__.pop(FROZEN, None)
            if before is None:
                continue
            name = type(layer).__name__
            for parameter in before.trained:
                layer.get_parameter(parameter).requires_grad_(True)
            if before.kind is not None:
                cast(Remembering, layer).unfreeze()
                layer.__class__ = before.kind
                if before.alone:
                    restore(layer)
            found.did(path, name, type(layer).__name__, "unfrozen")
    return (target, found) if report else target

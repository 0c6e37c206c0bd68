"""convert(): one kind of normalization in place of another, with the trained weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from evenorm import layers
from evenorm.epilogue import Epilogue
from evenorm.layers import Layer
from evenorm.layers.remembering import BatchLayer
from evenorm.pattern import Pattern
from evenorm.statistics import Accumulated, Cumulative, Frozen, PerDomain, Renorm, Statistics, Synced, parts
from evenorm.surgery.change import become
from evenorm.surgery.freeze import FROZEN
from evenorm.surgery.kinds import axes_of, fused_kind, ghost_kind, plain_kind
from evenorm.surgery.proof import Inputs, ProofError, observe, prove, widened
from evenorm.surgery.record import record
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.snapshot import atomic
from evenorm.surgery.weights import plain_weights

__all__ = ["Target", "convert"]

Target = Literal["batch", "sync", "ghost", "renorm", "frozen", "group", "layer", "weights"]
"""What batch normalization is converted to; ``"weights"`` removes weight and spectral normalization instead."""

_MOST_GROUPS = 32
_WHOLE = Pattern.parse("[n] c [...]")


@dataclass(frozen=True)
class _Settings:
    virtual_batch_size: int
    groups: int | None
    process_group: Any
    axes: Mapping[nn.Module, int]


def convert(
    model: nn.Module,
    to: Target | Statistics,
    example_inputs: Any = None,
    *,
    virtual_batch_size: int = 16,
    groups: int | None = None,
    process_group: Any = None,
    inplace: bool = True,
    report: bool = False,
) -> Any:
    """Turn every batch normalization of a model into another kind; the layers stay the same objects.

    - ``"batch"``, ``"sync"``, ``"ghost"``, ``"renorm"``, ``"frozen"``, or any statistics: parameters, running
      statistics and counters are kept, and so is what the model computes in evaluation. Torch's SyncBatchNorm does
      not say how many axes its input has; back to ``"batch"`` it needs example inputs.
    - ``"group"`` and ``"layer"`` (LayerNorm2d): the trained weight and bias are kept, the running statistics are not.
      The model computes something else and wants training. A group has two channels at least, so that it never has
      a single value.
    - ``"weights"``: weight and spectral normalization are removed, the weights are what they computed.

    What a layer was, buffers included, :func:`revert` brings back.

    Args:
        model: any module.
        to: the kind, or statistics such as ``Renorm(r_max=2.0)``.
        example_inputs: a tensor, a tuple of arguments, or a dict; where given, the outputs are compared.
        virtual_batch_size: of ghost batches.
        groups: for ``"group"``; the largest divisor of the channels up to 32 that leaves two in each, unless given.
        process_group: for ``"sync"``; all processes unless given.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    Raises:
        ValueError: there is no such kind.
        ProofError: the outputs in evaluation changed where they should not; the model is as it was.

    >>> convert(nn.Sequential(nn.BatchNorm2d(8)), to="group")
    Sequential(
      (0): GroupNorm(4, 8, eps=1e-05, affine=True, bias=True)
    )
    """
    if to not in get_args(Target) and not isinstance(to, Statistics):
        raise ValueError(f"convert: expected one of {', '.join(get_args(Target))}, or statistics; got {to!r}")
    found = SurgeryReport("convert")
    target = model if inplace else copy.deepcopy(model)
    inputs = None if example_inputs is None else Inputs.of(example_inputs)
    keeps = to not in ("group", "layer")
    with atomic(target):
        before = None if inputs is None or not keeps else observe(*widened(target, inputs))
        if to == "weights":
            plain_weights(target, found)
        else:
            settings = _Settings(virtual_batch_size, groups, process_group, _axes(target, inputs))
            for path, layer in list(target.named_modules()):
                if _is_batch_norm(layer):
                    _convert(path, layer, to, settings, found)
        if inputs is not None and before is not None:
            found.proof = prove(before, observe(*widened(target, inputs)), *widened(target, inputs))
            if not found.proof.holds:
                raise ProofError(f"convert: the outputs changed by {found.proof}; the model is as it was")
    return (target, found) if report else target


def _is_batch_norm(layer: nn.Module) -> bool:
    if isinstance(layer, Layer):
        return isinstance(layer, BatchLayer) and not isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _axes(model: nn.Module, inputs: Inputs | None) -> dict[nn.Module, int]:
    """How many axes of positions each batch norm takes: what its class says, else what it was given."""
    norms = [m for m in model.modules() if _is_batch_norm(m)]
    known = {m: axes for m in norms if (axes := axes_of(m)) is not None}
    if inputs is not None and len(known) < len(norms):
        flow = record(model, inputs, _is_batch_norm)
        for norm, calls in flow.calls.items():
            known.setdefault(norm, max(calls[0].given.dim() - 2, 1))
    return known


def _convert(path: str, layer: nn.Module, to: Target | Statistics, settings: _Settings, report: SurgeryReport) -> None:
    name = type(layer).__name__
    reason = _why_not(layer, to, settings)
    if reason is not None:
        report.refuse(path, name, reason)
        return
    kind, attributes = _become_what(layer, to, settings)
    if type(layer) is kind and all(getattr(layer, key, None) == value for key, value in attributes.items()):
        return
    become(layer, kind, attributes)
    assert isinstance(layer, Layer)
    if isinstance(layer, BatchLayer) and _has_window(layer.statistics):
        layer._complete_history(layer.statistics)
    layer.validate()
    report.did(path, name, f"evenorm.{type(layer).__name__}: {layer.recipe}", "converted")


def _why_not(layer: Any, to: Target | Statistics, settings: _Settings) -> str | None:
    base = getattr(nn.modules.batchnorm, type(layer).__name__, None)
    if FROZEN in layer.__dict__:
        return "it is frozen; unfreeze() it first"
    if not isinstance(layer, Layer) and type(layer) is not base:
        return "it is a class of its own, whose forward may do more than batch normalization"
    if to in ("group", "layer"):
        if to == "layer" and settings.axes.get(layer) != 2:
            return "LayerNorm2d takes images (N, C, H, W)"
        channels, groups = layer.num_features, settings.groups
        if to == "group" and (channels < 2 or (groups is not None and (channels % groups or channels // groups < 2))):
            return f"{channels} channels cannot be in {groups or 1} groups of two or more"
        return None
    if layer.running_mean is None and to != "batch" and to != "sync" and to != "ghost":
        return "it keeps no running statistics"
    if layer not in settings.axes and to != "sync":
        return f"{type(layer).__name__} does not say how many axes it takes; give example_inputs"
    return None


def _become_what(layer: Any, to: Target | Statistics, settings: _Settings) -> tuple[type[nn.Module], dict[str, Any]]:
    epilogue = layer.epilogue if isinstance(layer, Layer) else Epilogue()
    if to == "group":
        groups = settings.groups or most_groups(layer.num_features)
        sizes = {"num_groups": groups, "num_channels": layer.num_features}
        return layers.GroupNorm, {**sizes, "_buffers": {}, **_without_history(layer)}
    if to == "layer":
        shape = {"normalized_shape": (layer.num_features,), "elementwise_affine": layer.affine}
        return layers.LayerNorm2d, {**shape, "_buffers": {}, **_without_history(layer)}
    # A ghost batch's own pattern must not stay behind.
    whole = {"pattern": _WHOLE} if "pattern" in layer.__dict__ else {}
    if to == "sync":
        return layers.SyncBatchNorm, {"chosen": Synced(settings.process_group), "thawed": None, **whole}
    axes = settings.axes[layer]
    if to == "ghost":
        size = settings.virtual_batch_size
        pattern = Pattern.parse("(k [n]) c [...]", n=size)
        return ghost_kind(axes), {"virtual_batch_size": size, "pattern": pattern, "chosen": None, "thawed": None}
    if to == "batch":
        plain = epilogue == Epilogue()
        return (plain_kind if plain else fused_kind)(axes), {"chosen": None, "thawed": None, **whole}
    statistics: Any = {"renorm": Renorm(), "frozen": Frozen()}.get(to) if isinstance(to, str) else to
    # What windows and domains add to the buffers stays out of the original ones.
    more = {"_buffers": dict(layer._buffers), "_non_persistent_buffers_set": set(layer._non_persistent_buffers_set)}
    return fused_kind(axes), {
        "chosen": statistics,
        "thawed": None,
        **whole,
        **(more if _has_window(statistics) else {}),
    }


def _without_history(layer: nn.Module) -> dict[str, Any]:
    return {"_non_persistent_buffers_set": set()} if layer._buffers else {}


def _has_window(statistics: Statistics | None) -> bool:
    """Whether it needs more buffers than torch's three."""
    return isinstance(statistics, Statistics) and any(
        isinstance(part, (PerDomain, Accumulated, Cumulative)) for part in parts(statistics)
    )


def most_groups(channels: int) -> int:
    """The largest divisor of the channels, 32 at most, that leaves two channels or more in each group.

    >>> [most_groups(c) for c in (2, 6, 7, 48, 64, 1280)]
    [1, 3, 1, 24, 32, 32]
    """
    return max(g for g in range(1, min(_MOST_GROUPS, channels // 2) + 1) if channels % g == 0)

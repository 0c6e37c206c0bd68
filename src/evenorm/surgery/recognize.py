"""Which of our layers a layer is: torch's by class, everyone else's by structure and behavior.

A foreign class is probed: a copy of it and a copy turned into ours get the same inputs, in both modes and in
half precision, and must agree to rounding. Its name is never asked.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenorm import layers
from evenorm.epilogue import Epilogue
from evenorm.layers import Layer
from evenorm.statistics import Synced
from evenorm.surgery.change import become
from evenorm.surgery.kinds import outside_of_torch
from evenorm.surgery.patterns import activation_of
from evenorm.surgery.trace import has_other_forward

__all__ = ["Twin", "epilogue_inside", "looks_like_norm", "recognize"]


@dataclass(frozen=True)
class Twin:
    """One of our classes, and the attributes that make it compute what another layer does."""

    kind: type[nn.Module]
    attributes: Mapping[str, Any] = field(default_factory=dict)


TORCH: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
    nn.InstanceNorm1d: layers.InstanceNorm1d,
    nn.InstanceNorm2d: layers.InstanceNorm2d,
    nn.InstanceNorm3d: layers.InstanceNorm3d,
    nn.GroupNorm: layers.GroupNorm,
    nn.LayerNorm: layers.LayerNorm,
    nn.RMSNorm: layers.RMSNorm,
}
_EXTRA: dict[type[nn.Module], dict[str, Any]] = {nn.RMSNorm: {"weight_offset": 0.0, "cast": "after"}}


def recognize(module: nn.Module) -> Twin | str | None:
    """Our twin of a layer; a reason where it looks like a normalizer and has none; ``None`` for all others."""
    if isinstance(module, Layer):
        return None
    kind = type(module)
    if kind is nn.SyncBatchNorm:
        return Twin(layers.SyncBatchNorm, {"chosen": Synced(module.process_group), "thawed": None})
    if kind in TORCH:
        return Twin(TORCH[kind], _EXTRA.get(kind, {}))
    if not looks_like_norm(module):
        return None
    if isinstance(module, (torch.jit.ScriptModule, nn.modules.lazy.LazyModuleMixin)):
        return f"{kind.__name__} has no forward of Python yet"
    if has_other_forward(module):
        return "its forward was replaced"
    epilogue = epilogue_inside(module)
    if epilogue is None:
        return "it has layers of its own inside"
    if _arguments(module) != 1:
        return "it takes more than one argument"
    for plain in _candidates(module):
        twin = _with(plain, epilogue)
        if _agrees(module, twin):
            best = min(_order_of_cast(twin), key=lambda t: _mismatches(module, t))
            return best if _mismatches(module, best) < 0.01 else twin
    return "it computes what none of our layers does"


def looks_like_norm(module: nn.Module) -> bool:
    """Whether a layer derives from a normalizer of torch's, or has a vector of weights and an eps and little else."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return True
    own = dict(module.named_parameters(recurse=False))
    return set(own) in ({"weight"}, {"weight", "bias"}) and own["weight"].dim() == 1 and _eps(module) is not None


def _eps(module: nn.Module) -> float | None:
    found = [v for k, v in module.__dict__.items() if ("eps" in k) and isinstance(v, float) and 0 < v < 0.1]
    return found[0] if len(found) == 1 else None


def _arguments(module: nn.Module) -> int:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(type(module).forward).parameters.values()
    return len([p for p in parameters if p.kind not in kinds]) - 1


def _candidates(module: nn.Module) -> Iterator[Twin]:
    for theirs, ours in TORCH.items():
        if isinstance(module, theirs):
            yield Twin(ours, _EXTRA.get(theirs, {}))
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1:
        return
    eps = getattr(module, "eps", None) if isinstance(module, nn.LayerNorm) else _eps(module)
    shape = {"normalized_shape": tuple(weight.shape), "eps": eps, "elementwise_affine": True}
    if "bias" in module._parameters:
        yield Twin(layers.LayerNorm, shape)
        yield Twin(layers.LayerNorm2d, shape)
    else:
        for kind in (layers.RMSNorm, layers.RMSNorm2d):
            for offset in (0.0, 1.0):
                yield Twin(kind, {**shape, "weight_offset": offset, "cast": "after"})


def epilogue_inside(module: nn.Module) -> Epilogue | None:
    """What the activation inside a layer computes, as in timm's BatchNormAct2d; ``None`` where more is inside."""
    inside = [child for child in module.children() if type(child) is not nn.Identity]
    if not inside:
        return Epilogue()
    return activation_of(inside[0]) if len(inside) == 1 else None


def _with(twin: Twin, epilogue: Epilogue) -> Twin:
    """A twin with an activation: of a class that other people's converters leave alone."""
    if epilogue == Epilogue():
        return twin
    return Twin(outside_of_torch(twin.kind), {**twin.attributes, "epilogue": epilogue})


def _order_of_cast(twin: Twin) -> list[Twin]:
    if not issubclass(twin.kind, layers.RMSNorm):
        return [twin]
    return [Twin(twin.kind, {**twin.attributes, "cast": cast}) for cast in ("after", "before")]


def _pair(module: nn.Module, twin: Twin, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Copies of the layer and of its twin with one and the same random state."""
    theirs = copy.deepcopy(module)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(theirs, hooks).clear()
    theirs = theirs.to(device="cpu", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.5 + 0.7).to(dtype)
    for name, buffer in theirs.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif "tracked" in name:
            buffer.fill_(3)
    ours = copy.deepcopy(theirs)
    become(ours, twin.kind, twin.attributes)
    return theirs, ours


def _inputs(module: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """Inputs of three to five axes, ordinary and so small that eps counts."""
    weight = module._parameters.get("weight")
    size = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    last = tuple(getattr(module, "normalized_shape", ()) or (weight.shape if weight is not None else ()))
    channels = size or (last[0] if len(last) == 1 else None)
    generator = torch.Generator().manual_seed(1)
    for shape in ((3, 5, *last), (3, channels), (3, channels, 5), (3, channels, 4, 5), (2, channels, 3, 2, 2)):
        if None not in shape and len(shape) > 1:
            for scale in (1.0, 1e-3):
                noise = torch.randn(shape, generator=generator, dtype=torch.float64)
                yield ((noise + 0.3) * scale).to(dtype)


def _agrees(module: nn.Module, twin: Twin) -> bool:
    """Whether both compute the same, keep the same history, and refuse the same inputs; at least one is taken."""
    device_dtype = next((p.dtype for p in module.parameters()), torch.float32)
    dtype = torch.float64 if device_dtype == torch.float64 else torch.float32
    taken = 0
    for training in (True, False):
        for x in _inputs(module, dtype):
            theirs, ours = _pair(module, twin, dtype)
            expected, found = _call(theirs.train(training), x), _call(ours.train(training), x)
            if expected is None:
                continue
            if found is None or not _close(expected, found):
                return False
            for old, new in zip(theirs.buffers(), ours.buffers(), strict=True):
                if not _close(old, new):
                    return False
            taken += 1
    return taken > 0


def _call(module: nn.Module, x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            y = module(x.clone())
    except Exception:
        # A class of unknown origin may raise anything at a shape that it does not take.
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def _close(expected: Tensor, found: Tensor) -> bool:
    if not expected.is_floating_point():
        return expected.equal(found)
    eps = torch.finfo(expected.dtype).eps
    scale = float(expected.abs().max())
    return expected.dtype == found.dtype and float((expected - found).abs().max()) <= 32 * eps * scale


def _mismatches(module: nn.Module, twin: Twin) -> float:
    """The share of values that differ in bfloat16, where the order of cast and scale shows."""
    different = total = 0
    for x in _inputs(module, torch.bfloat16):
        theirs, ours = _pair(module, twin, torch.bfloat16)
        expected, found = _call(theirs.eval(), x), _call(ours.eval(), x)
        if expected is not None and found is not None:
            different += int((expected != found).sum())
            total += expected.numel()
    return different / total if total else 0.0

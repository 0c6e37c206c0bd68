"""M5, dead bias: which biases does a following normalizer cancel?

Their gradient is zero beside the weight's. An attention key's bias has none either, so each candidate is moved, and
counts only if the input's mean of a normalizer moves by the same amount and the model's answer stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Trace, trace

__all__ = ["DeadBias", "dead_biases"]

# Of the weight's gradient; what is left of a cancelled sum in float32.
GRADIENT = 1e-4
ANSWER = 1e-3


@dataclass(frozen=True)
class DeadBias:
    """A bias without effect: the module's path, the normalizer's, and the ratio of the gradients' norms."""

    path: str
    norm: str
    ratio: float


def dead_biases(subject: Subject) -> tuple[DeadBias, ...]:
    """The biases that the statistics of batch and instance norms cancel."""
    found = subject.trace
    if found is None or found.failure is not None or not found.gradients:
        return ()
    ratios = {path: ratio for path in _biased(subject.model) if (ratio := _ratio(found, path)) is not None}
    if not ratios:
        return ()
    moved, shifts = _moved(subject, list(ratios))
    dead = []
    for path, shift in shifts.items():
        norm = _norm_that_moved(found, moved, shift)
        if norm is not None:
            dead.append(DeadBias(path, norm, ratios[path]))
    return tuple(dead) if _same_answer(found, moved) else ()


def _biased(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [path for path, module in model.named_modules() if isinstance(module, kinds) and module.bias is not None]


def _ratio(found: Trace, path: str) -> float | None:
    """The bias's gradient beside the weight's, if it is zero and the layer is alive."""
    prefix = f"{path}." if path else ""
    weight, bias = found.gradients.get(f"{prefix}weight"), found.gradients.get(f"{prefix}bias")
    if not weight or bias is None or bias > GRADIENT * weight:
        return None
    return bias / weight


def _moved(subject: Subject, paths: list[str]) -> tuple[Trace, dict[str, Tensor]]:
    """One more training pass with all candidates moved, and by how much."""
    assert subject.inputs is not None
    generator, shifts = torch.Generator().manual_seed(0), {}
    with subject.experiment() as model:
        if not model.training:
            model.train()
        for path in paths:
            bias = model.get_submodule(path).bias
            assert isinstance(bias, Tensor)
            shift = torch.randn(bias.shape, generator=generator).to(bias) * (bias.detach().abs().mean() + 1)
            bias.data += shift
            shifts[path] = shift
        return trace(model, subject.inputs, subject.sites), shifts


def _norm_that_moved(before: Trace, after: Trace, shift: Tensor) -> str | None:
    """The normalizer whose input's means moved by a bias's shift."""
    for old, new in zip(before.calls, after.calls, strict=False):
        if old.mean is None or new.mean is None or old.mean.shape != shift.shape or not old.site.uses_batch(True):
            continue
        if old.site is new.site and torch.allclose(new.mean - old.mean, shift.to(old.mean), rtol=0.05, atol=0.05):
            return old.site.path
    return None


def _same_answer(before: Trace, after: Trace) -> bool:
    if after.failure is not None or len(before.outputs) != len(after.outputs):
        return False
    pairs = list(zip(before.outputs, after.outputs, strict=True))
    return bool(pairs) and all(
        float((a.double() - b.double()).abs().max()) <= ANSWER * float(a.double().square().mean().sqrt())
        for a, b in pairs
        if a.numel() and a.shape == b.shape
    )

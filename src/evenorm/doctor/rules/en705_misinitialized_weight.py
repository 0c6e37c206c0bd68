"""A normalizer whose weight was initialized as if it were a matrix, or not at all.

What it finds:
    In a model that is to be trained from scratch: weights that are not finite or enormous (memory that was never
    written), noise around zero in a layer that multiplies by w, ones in a layer that multiplies by 1 + w, or zeros
    in every normalizer of the model.

Why it matters:
    ``torch.empty`` gives NaN on one machine and zeros on another; ``normal_(0, 0.02)`` over all parameters shrinks
    every layer fiftyfold. Training starts slowly, or never.

Instead:
    Ones (zeros where the layer adds one); call ``reset_parameters()`` after ``to_empty()``.

Fix:
    The weight becomes what its convention starts with.

References:
    mosaicml/llm-foundry#1745, NVIDIA/TransformerEngine#2528, flagos-ai/FlagPerf#683, huggingface/transformers#143,
    huggingface/transformers#40796, facebookresearch/dinov2#476
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import HandRMSNorm
from evenorm.doctor.mending import filled
from evenorm.doctor.probes.offset import offsets
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

# No initialization gives as much, and memory that was never written often does.
ENORMOUS = 1e4
# Below this a mean is not told from zero.
FEW = 16


def check(subject: Subject) -> Iterator[Symptom]:
    """Look at each weight before training."""
    if subject.intent != "train" or subject.state_dict is not None:
        return
    added = subject.probe(offsets)
    weights = {s.path: s.weight.detach() for s in subject.sites if s.weight is not None and not s.weight.is_meta}
    plain = [weights[path] for path, offset in added.items() if offset == 0 and path in weights]
    dead = len(plain) > 1 and all(not w.any() for w in plain)
    for site in subject.sites:
        weight = weights.get(site.path)
        if weight is None or not weight.numel():
            continue
        offset = added.get(site.path)
        fault = _fault(weight.float(), offset, dead)
        if fault is None:
            continue
        start = 1.0 - (offset or 0.0)
        evidence = {"mean": float(weight.float().mean()), "standard deviation": float(weight.float().std(correction=0))}
        yield Symptom(
            site.path,
            f"its weight is {fault}; before training it is {start:g}",
            "call reset_parameters() after every other initialization, and leave normalizers out of those",
            evidence,
            filled(site, start),
        )


def _fault(weight: Tensor, offset: float | None, dead: bool) -> str | None:
    if not weight.isfinite().all():
        return "not finite"
    if float(weight.abs().max()) > ENORMOUS:
        return f"as large as {float(weight.abs().max()):.2g}"
    if offset == 0 and _is_noise(weight):
        return f"noise around zero (standard deviation {float(weight.std()):.2g})"
    if offset == 1 and bool((weight == 1).all()):
        return "one, and one is added to it"
    if offset == 0 and dead:
        return "zero, like that of every normalizer here"
    return None


def _is_noise(weight: Tensor) -> bool:
    """Of both signs alike, with a mean that is zero within its own error."""
    if weight.numel() < FEW:
        return False
    spread, negative = float(weight.std()), float((weight < 0).float().mean())
    return 0.25 < negative < 0.75 and abs(float(weight.mean())) < 4 * spread / weight.numel() ** 0.5


def _network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), norm, nn.ReLU(), nn.Linear(32, 2))


def _with(norm: Any, weight: Tensor) -> nn.Module:
    norm.weight.data = weight
    return _network(norm)


def ailing() -> Iterator[Specimen]:
    """Initialized by the wrong hand."""
    noise = 0.02 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    yield Specimen("normal_(0, 0.02) over all parameters", _with(nn.LayerNorm(32), noise))
    yield Specimen("memory that was never written", _with(nn.LayerNorm(32), torch.full((32,), float("nan"))))
    yield Specimen("ones where one is added", _with(HandRMSNorm(32, offset=1.0), torch.ones(32)), torch.randn(2, 4))
    yield Specimen("garbage in a batch norm", _with(nn.BatchNorm1d(32), torch.full((32,), 3e30)))


def healthy() -> Iterator[Specimen]:
    """Started as they should be, or trained."""
    yield Specimen("as torch starts it", _network(nn.LayerNorm(32)))
    residual = nn.Sequential(nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))
    nn.init.zeros_(residual[2].weight)  # type: ignore[arg-type]
    yield Specimen("a residual branch that starts at zero", residual)
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    yield Specimen("noise around zero where one is added, as Gemma", _with(HandRMSNorm(32, offset=1.0), 0.02 * noise))
    yield Specimen("trained weights", _with(nn.LayerNorm(32), 0.7 + 0.3 * noise))
    yield Specimen("zeros where one is added", _with(HandRMSNorm(32, offset=1.0), torch.zeros(32)))

"""A weight in the other convention: w where 1 + w was meant, or the reverse.

What it finds:
    RMS or layer normalizers that multiply by w although their weights scatter around zero, or by 1 + w although
    their weights lie around one. Which of both a layer does is found by setting its weight to zero.

Why it matters:
    Gemma, Qwen3-Next and Megatron store w − 1. Read in the other convention each layer answers with almost
    nothing, or with twice as much; text stays fluent and is wrong.

Instead:
    Add or subtract one while converting the checkpoint, exactly once, or build the layer with the same offset.

Fix:
    One is added to, or subtracted from, the weights in place.

References:
    utensils/mold#1078, huggingface/transformers#40796, huggingface/transformers#40449, ggml-org/llama.cpp#5810
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.handwritten import HandRMSNorm
from evenorm.doctor.mending import spelled
from evenorm.doctor.probes.offset import offsets
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare each layer's convention with its weights, or with the reference's."""
    added = subject.probe(offsets)
    sites = [site for site in subject.sites if site.kind in ("rms", "layer") and site.path in added]
    found = _among(subject, sites, added) if subject.reference is None else _beside(subject, sites, added)
    for site, step, severity_ in found:
        middle = float(_weight(subject, site).float().median())
        does = "w" if step > 0 else "1 + w"
        lie = f"its weights lie around {'zero' if step > 0 else 'one'} (median {middle:.3g})"
        differs = f"every scale is {'less' if step > 0 else 'more'} by one than the reference's"
        fix = Fix(f"{spelled(site.path)}.weight.data.add_({step:g})", partial(_shift, site, step))
        yield Symptom(
            site.path,
            f"multiplies by {does}, and {lie if subject.reference is None else differs}",
            f"{'add one to' if step > 0 else 'subtract one from'} the weights when the checkpoint is converted",
            {"convention": does, "median weight": middle},
            fix if subject.state_dict is None else None,
            severity=severity_,
        )


def _among(subject: Subject, sites: list[Site], added: dict[str, float]) -> Iterator[tuple[Site, float, Severity]]:
    """The sites that have the wrong convention by the look of their weights, and what to add to those."""

    def family(site: Site) -> tuple[str, float]:
        return site.kind, added[site.path]

    # Without a checkpoint such weights are an initialization's, which EN705 looks at.
    fresh = subject.intent == "train" and subject.state_dict is None
    for (_, offset), group in groupby(sorted(sites, key=family), key=family):
        members = list(group)
        values = torch.cat([_weight(subject, site).flatten().float() for site in members])
        if offset == 0 and not fresh and _around_zero(values):
            yield from ((site, 1.0, "error") for site in members)
        elif offset == 1 and _around_one(values, fresh):
            # Trained weights of 1 + w may lie anywhere: without a reference this is no proof.
            yield from ((site, -1.0, "warning") for site in members)


def _beside(subject: Subject, sites: list[Site], added: dict[str, float]) -> Iterator[tuple[Site, float, Severity]]:
    """The sites whose scale differs from the reference's by one in every element, which is no accident."""
    assert subject.reference is not None
    other = Subject(subject.reference)
    twins, twins_added = {site.path: site for site in other.sites}, other.probe(offsets)
    for site in sites:
        twin, weight = twins.get(site.path), _weight(subject, site)
        if twin is None or twin.weight is None or twin.path not in twins_added or twin.weight.shape != weight.shape:
            continue
        change = (weight.float() + added[site.path]) - (twin.weight.float() + twins_added[twin.path])
        for step in (1.0, -1.0):
            if bool(((change + step).abs() < 0.01).all()):
                yield site, step, "error"


def _weight(subject: Subject, site: Site) -> Tensor:
    """Of the checkpoint, where there is one."""
    weight = site.weight
    assert weight is not None
    held = (subject.state_dict or {}).get(subject.names.get(id(weight), ""))
    return (weight if held is None else held).detach().cpu()


def _around_zero(values: Tensor) -> bool:
    """Of both signs, without being zero."""
    negative = float((values < 0).float().mean())
    zero = float((values == 0).float().mean())
    return values.numel() >= 8 and 0.2 < negative < 0.8 and zero < 0.5 and abs(float(values.median())) < 0.2


def _around_one(values: Tensor, fresh: bool) -> bool:
    """Nearly all of them; ones that were never trained are an initialization's."""
    middle, low = float(values.median()), float((values < 0.3).float().mean())
    trained = bool((values != 1).any())
    return values.numel() >= 8 and 0.8 < middle < 1.25 and low < 0.02 and (trained or not fresh)


def _shift(site: Site, step: float) -> None:
    with torch.no_grad():
        assert site.weight is not None
        site.weight.add_(step)


def _trained(norm: HandRMSNorm, middle: float) -> HandRMSNorm:
    generator = torch.Generator().manual_seed(0)
    norm.weight.data = middle + 0.1 * torch.randn(norm.weight.shape, generator=generator)
    return norm


def _infer(model: nn.Module) -> dict[str, Any]:
    return {"intent": "infer"}


@lru_cache(maxsize=4)
def _before_conversion(model: nn.Module) -> dict[str, Any]:
    """A reference in the other convention with the same numbers."""
    reference = copy.deepcopy(model)
    modules: list[Any] = [module for module in reference.modules() if hasattr(module, "offset")]
    for module in modules:
        module.offset = 1.0 - module.offset
    return {"reference": reference}


def ailing() -> Iterator[Specimen]:
    """Read in the other convention."""
    yield Specimen("Gemma's weights in Llama's layer", _trained(HandRMSNorm(32), 0.0), options=_infer)
    yield Specimen("Llama's weights in Gemma's layer", _trained(HandRMSNorm(32, offset=1.0), 1.0), options=_infer)
    yield Specimen("beside the model it was made from", _trained(HandRMSNorm(32), 0.5), options=_before_conversion)
    checkpoint = {"weight": torch.ones(32), "parts.0.weight": torch.ones(32)}
    options = {"state_dict": checkpoint}
    yield Specimen("a checkpoint of ones for 1 + w", HandRMSNorm(32, offset=1.0), options=lambda model: options)


def healthy() -> Iterator[Specimen]:
    """Each in its own convention."""
    yield Specimen("Llama's", _trained(HandRMSNorm(32), 1.0), options=_infer)
    yield Specimen("Gemma's", _trained(HandRMSNorm(32, offset=1.0), 0.0), options=_infer)
    yield Specimen("the small positive weights of a first layer", _trained(HandRMSNorm(32), 0.4), options=_infer)
    zeros = HandRMSNorm(32)
    nn.init.zeros_(zeros.weight)
    yield Specimen("a residual branch that starts at zero", zeros, options=_infer)
    yield Specimen("trained far from one", _trained(HandRMSNorm(32, offset=1.0), 3.0), options=_infer)

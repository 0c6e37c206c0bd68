"""A normalizer in another's place that computes something else.

What it finds:
    With the reference: a frozen, group or other normalizer where that has a batch norm, which lost its eps or its
    activation. Both get the same random statistics, one channel almost constant, and the same input.

Why it matters:
    A frozen batch norm with eps 0 turns a dead channel into 1e21; one without the activation of the layer it
    replaced feeds the next layer numbers that it has never seen. With fresh statistics both agree.

Instead:
    A converter that carries eps and activation over, and is compared on random statistics.

Fix:
    The reference's eps, or its layer back in place with the present tensors.

References:
    huggingface/pytorch-image-models#1631, pytorch/vision#2169, pytorch/vision#2190, pytorch/vision#1947,
    SlongLiu/query2labels#39
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import ActivatedBatchNorm2d, FrozenBatchNorm2d
from evenorm.doctor.mending import put_back, with_eps
from evenorm.doctor.probes.equivalence import swaps
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare each exchanged norm with the reference's."""
    for swap in subject.probe(swaps):
        before, after = swap.before, swap.after
        if type(after.module).forward is nn.SyncBatchNorm.forward:
            # EN305's.
            continue
        evidence = {"lost": swap.lost, "relative error": swap.error, "eps": after.eps, "eps before": before.eps}
        if swap.lost == "eps" and before.eps is not None:
            fault, fix = f"has eps={after.eps:g} for {before.eps:g}", with_eps(after, before.eps)
        else:
            fault, fix = "drops what that did besides normalizing", put_back(subject.model, before, after)
        yield Symptom(
            after.path,
            f"{after.label} stands for {before.label} and {fault}: error {swap.error:.2g} on random statistics",
            "carry eps and activation over when normalizers are exchanged",
            evidence,
            fix,
        )


def _network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 8, 3)).eval()


def _beside(norm: Callable[[int], nn.Module]) -> Callable[[nn.Module], dict[str, Any]]:
    """The reference: another norm at the place of the model's only one of eight channels that is no layer norm."""

    @lru_cache(maxsize=4)
    def options(model: nn.Module) -> dict[str, Any]:
        reference = copy.deepcopy(model)
        path = next(p for p, m in model.named_modules() if isinstance(m, nn.Conv2d))
        reference.set_submodule(f"{path[:-1]}1", norm(8).eval())
        return {"reference": reference}

    return options


def ailing() -> Iterator[Specimen]:
    """Something was lost."""
    batch, activated = _beside(nn.BatchNorm2d), _beside(ActivatedBatchNorm2d)
    yield Specimen("frozen without eps", _network(FrozenBatchNorm2d(8, eps=0.0)), options=batch)
    yield Specimen("frozen without the activation", _network(FrozenBatchNorm2d(8)), options=activated)
    yield Specimen("groups without the activation", _network(nn.GroupNorm(2, 8)), options=activated)


def healthy() -> Iterator[Specimen]:
    """Nothing was lost."""
    batch, activated = _beside(nn.BatchNorm2d), _beside(ActivatedBatchNorm2d)
    yield Specimen("frozen with its eps", _network(FrozenBatchNorm2d(8)), options=batch)
    yield Specimen("groups for a plain batch norm, on purpose", _network(nn.GroupNorm(2, 8)), options=batch)
    yield Specimen("the same layer", _network(ActivatedBatchNorm2d(8)), options=activated)
    yield Specimen("no reference", _network(FrozenBatchNorm2d(8)))

"""Batch norms folded into the wrong weights.

What it finds:
    With the reference: a model that lacks some of its batch norms and answers otherwise in evaluation.

Why it matters:
    Fusers look at the layer before a batch norm and not at who else uses it: a convolution that two branches share
    gets both their norms. Formulas that forget the bias or eps, and fusion in training, go wrong as silently.

Instead:
    Fuse by data flow and compare on statistics that are not 0 and 1: ``evenorm.fold(model, batch)`` does both.

Fix:
    None: the weights that were overwritten are gone. Fold the reference anew.

References:
    pytorch/pytorch#104593, pytorch/pytorch#197539, ultralytics/yolov3#807, open-mmlab/mmdetection#2924
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.equivalence import equivalence
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import find_sites
from evenorm.doctor.snapshot import undisturbed
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare a model without its batch norms with the one that has them."""
    if subject.reference is None:
        return
    # Another normalizer in the place, or a block around it, is an exchange and no fusion.
    here = [f"{site.path}." for site in subject.sites]
    batch = [site.path for site in find_sites(subject.reference) if site.kind == "batch"]
    gone = [path for path in batch if not any(other.startswith(f"{path}.") for other in here)]
    found = subject.probe(equivalence) if gone else None
    if found is None:
        return
    if found.holds:
        if found.fresh:
            subject.notes.append("EN802: the reference's running statistics are 0 and 1, where wrong fusions agree too")
        return
    reused = _reused(subject)
    paths = dict(subject.model.named_modules())
    path = next((p for p in reused if p in paths), "")
    shared = f"; {path} is called {reused[path]} times" if path else ""
    yield Symptom(
        path,
        f"without {len(gone)} of its reference's batch norms the model answers otherwise: relative error "
        f"{found.error:.2g} in evaluation{shared}",
        "fold the reference anew with evenorm.fold(model, batch), which refuses what it cannot fold",
        {"relative error": found.error, "tolerance": found.tolerance, "folded": gone, "called": reused},
    )


def _reused(subject: Subject) -> dict[str, int]:
    """Layers of the reference that one forward calls more than once."""
    reference, inputs = subject.reference, subject.inputs
    assert reference is not None
    assert inputs is not None
    counts: Counter[str] = Counter()
    with undisturbed(reference), torch.no_grad():
        reference.eval()
        for path, module in reference.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(_counting(counts, path))
        inputs(reference)
    return {path: count for path, count in counts.items() if count > 1}


def _counting(counts: Counter[str], path: str) -> Callable[..., None]:
    def count(module: nn.Module, args: Any) -> None:
        counts[path] += 1

    return count


class Twice(nn.Module):
    """A convolution that two batch norms share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Twice."""
        y: Tensor = self.second(self.conv(self.first(self.conv(x)).relu()))
        return y


class Once(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Once."""
        y: Tensor = self.first(self.conv(x)).relu()
        return y


def _used(model: nn.Module) -> nn.Module:
    """With statistics that have been gathered."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.rand(3)
            module.running_var = torch.rand(3) + 0.5
    return model.eval()


def _fused(model: nn.Module, eps: float) -> nn.Module:
    """As fusers do that go by names: the norms become identities, the convolution takes each."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            owner: Any = model.get_submodule(path.rpartition(".")[0])
            module.eps = eps
            owner.conv = fuse_conv_bn_eval(owner.conv, module)
            setattr(owner, path.rpartition(".")[2], nn.Identity())
    return model


def _before(original: nn.Module) -> Callable[[nn.Module], dict[str, Any]]:
    """The reference of a model in whatever dress: the same dress around what was fused."""

    @lru_cache(maxsize=4)
    def options(model: nn.Module) -> dict[str, Any]:
        reference = copy.deepcopy(model)
        path = next(p for p, m in reference.named_modules() if hasattr(m, "conv"))
        if not path:
            return {"reference": original}
        reference.set_submodule(path, original)
        return {"reference": reference}

    return options


def _specimen(about: str, original: nn.Module, eps: float = 1e-5) -> Specimen:
    fused = _fused(copy.deepcopy(original), eps)
    return Specimen(about, fused, torch.randn(2, 3, 6, 6), options=_before(original))


def ailing() -> Iterator[Specimen]:
    """Fused by name."""
    yield _specimen("a convolution that two norms share", _used(Twice()))
    yield _specimen("a formula with another eps", _used(Once()), eps=0.1)


def healthy() -> Iterator[Specimen]:
    """Fused rightly, or not at all."""
    yield _specimen("a convolution with one norm", _used(Once()))
    original = _used(Twice())
    yield Specimen("not fused", copy.deepcopy(original), torch.randn(2, 3, 6, 6), options=_before(original))

"""One batch norm for several populations within a forward.

What it finds:
    A batch norm that one forward calls several times, on inputs that are not of one population: a two-sample test
    over samples, per channel, of means and variances.

Why it matters:
    Each call normalizes with its own statistics in training, and all move one running average. In evaluation every
    level, scale or branch is normalized with the mixture, which is that of none of them.

Instead:
    One batch norm per level over a shared convolution, one call on the concatenation, or a group norm.

Fix:
    None: the module has to be built with several layers.

References:
    open-mmlab/mmdetection#6515, aim-uofa/AdelaiDet#153, zylo117/Yet-Another-EfficientDet-Pytorch#560,
    Mhaiyang/ICCV2019_MirrorNet#4, keras-team/keras#8794
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from evenorm.doctor.excerpt import thinned
from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.populations import largest_difference
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Call, trace

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the calls of each batch norm in one training pass."""
    if subject.trace is None or not subject.trains:
        return
    several = [site for site in subject.sites if site.kind == "batch" and _learns(subject, site)]
    for site, calls in _seen(subject, several).items():
        worst = largest_difference([call.x for call in calls])
        if worst is None:
            continue
        yield Symptom(
            site.path,
            f"{len(calls)} calls in one forward see different populations: {worst}",
            "a batch norm for each, one call on their concatenation, or a group norm",
            {"calls": len(calls), **worst.to_dict()},
        )


def _learns(subject: Subject, site: Site) -> bool:
    """Whether several calls in one forward move its running statistics."""
    assert subject.trace is not None
    calls = subject.trace.of(site)
    return len(calls) > 1 and site.remembers and site.uses_batch(True) and all(call.training for call in calls)


def _seen(subject: Subject, sites: Sequence[Site]) -> dict[Site, list[Call]]:
    """Their calls in one more pass, with an excerpt of many samples."""
    if not sites or subject.inputs is None:
        return {}
    with subject.experiment() as model:
        model.train()
        found = trace(model, subject.inputs, sites, excerpt=thinned)
    return {site: found.of(site) for site in sites}


class Head(nn.Module):
    """A head shared by the levels of a pyramid, each level with its own or the same norm."""

    def __init__(self, norms: int, gain: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(norms))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Three levels, each of half the size and another strength."""
        levels = [x, self.gain * x[:, :, ::2, ::2], self.gain**2 * x[:, :, ::4, ::4]]
        answers = [self.norms[i % len(self.norms)](self.conv(level)).mean((2, 3)) for i, level in enumerate(levels)]
        return torch.stack(answers).sum(0)


def ailing() -> Iterator[Specimen]:
    """One running average for all levels."""
    yield Specimen("a head shared by pyramid levels", Head(1, 2.0), torch.randn(8, 3, 16, 16))


def healthy() -> Iterator[Specimen]:
    """One population, or one norm each."""
    images = torch.randn(8, 3, 16, 16)
    yield Specimen("a norm per level", Head(3, 2.0), images)
    yield Specimen("branches that see one population", Head(1, 1.0), images)
    yield Specimen("frozen statistics", Head(1, 2.0).eval(), images, options=lambda model: {"intent": "infer"})

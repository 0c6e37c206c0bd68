"""Running statistics that were never estimated.

What it finds:
    A batch norm whose running mean is 0 and variance 1 in every channel, in a model whose other numbers show that it
    was trained; on a batch, that the inputs' statistics are others.

Why it matters:
    Evaluation hardly normalizes: the classic sign is the accuracy of a constant answer. The statistics were lost on
    the way (a checkpoint of parameters, a federated average, an averaged copy), or the layer only ran in evaluation.

Instead:
    Save and average buffers too; otherwise gather the statistics again.

Fix:
    None without data: ``evenorm.recalibrate(model, loader)``.

References:
    HomericIntelligence/Odyssey#5543, CuriousAI/mean-teacher#9, torch/nn#1165, fedbiomed/fedbiomed#903
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenorm.doctor.checkpoint import Checkpoint
from evenorm.doctor.finding import Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"

# So far from 0 and 1 no channel of a whitened input lies.
MEAN_OFF, VARIANCE_OFF = 0.1, 1.3


def check(subject: Subject) -> Iterator[Symptom]:
    """Find the initial values beside trained ones, and confirm on the batch."""
    checkpoint = None if subject.state_dict is None else Checkpoint.of(subject.model, subject.state_dict)
    kept = [site for site in subject.sites if site.kind == "batch" and site.remembers]
    held = {site.path: (site.running_mean, site.running_var) for site in kept}
    if checkpoint is not None:
        held = {site.path: checkpoint.history(site) for site in kept}
    initial = [site for site in kept if is_initial(*held[site.path])]
    if not initial:
        return
    others = len(initial) < sum(mean is not None for mean, _ in held.values())
    guilty = [site for site in initial if (others or _trained(site, checkpoint)) and _differs(subject, site)]
    if guilty:
        yield Symptom(
            guilty[0].path,
            f"the running statistics of {counted(len(guilty), 'batch norm')} are still 0 and 1 in a trained model",
            "gather them: evenorm.recalibrate(model, loader)",
            {"batch norms": len(guilty), "of": len(kept)},
        )


def is_initial(mean: Tensor | None, variance: Tensor | None) -> bool:
    """Whether statistics are those of a new layer."""
    if mean is None or variance is None or mean.is_meta:
        return False
    return bool((mean == 0).all() and (variance == 1).all())


def _trained(site: Site, checkpoint: Checkpoint | None) -> bool:
    """Whether the affine has moved as only training moves it: a bias that differs between channels."""
    bias = site.bias if checkpoint is None else checkpoint.tensors.get(f"{site.path}.bias" if site.path else "bias")
    return bias is not None and bias.numel() > 1 and bool(bias.std() > 0) and bool((bias != 0).all())


def _differs(subject: Subject, site: Site) -> bool:
    """Whether the inputs' statistics are other than 0 and 1; without a batch it must be believed."""
    if subject.evaluation is None:
        return True
    for call in subject.evaluation.of(site):
        if call.mean is not None and call.variance is not None:
            far = (call.mean.abs() > MEAN_OFF) | (call.variance > VARIANCE_OFF) | (call.variance < 1 / VARIANCE_OFF)
            if bool(far.any()):
                return True
    return False


def _trained_net(*, keep: bool) -> nn.Sequential:
    """A trained network, with or without its statistics."""
    norm = nn.BatchNorm1d(8)
    net = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(16, 4) + 1
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    if not keep:
        norm.reset_running_stats()
    return net.eval()


def ailing() -> Iterator[Specimen]:
    """Trained weights, initial statistics."""
    yield Specimen("a checkpoint of parameters, loaded", _trained_net(keep=False), torch.randn(8, 4) + 1)
    yield Specimen("the same, without a batch", _trained_net(keep=False))


def healthy() -> Iterator[Specimen]:
    """New models, and trained ones."""
    yield Specimen("a new model", nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), torch.randn(8, 4))
    yield Specimen("a trained model", _trained_net(keep=True), torch.randn(8, 4) + 1)
    drawn = nn.BatchNorm2d(8)
    nn.init.normal_(drawn.weight, 1.0, 0.02)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), drawn)
    yield Specimen("a new GAN, whose weights start at random", net, torch.randn(2, 3, 8, 8))

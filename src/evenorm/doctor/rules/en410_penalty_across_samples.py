"""A gradient penalty for each sample behind a batch norm.

What it finds:
    A loop that differentiates a model's outputs with respect to its inputs and trains on that gradient, while a
    normalizer inside computes with statistics of the batch: one sample's output has a gradient with respect to the
    other samples' inputs.

Why it matters:
    The penalty holds the norm of each sample's own gradient at a value. Behind batch statistics the gradient with
    respect to one input is a sum over all outputs of the batch: what is penalized is the critic's slope nowhere.

Instead:
    Layer or instance normalization in the critic, or none. Some report that batch norm helps them nevertheless.

Fix:
    None: it is another network.

References:
    Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), section 4;
    hwalsuklee/tensorflow-generative-model-collections#17, kongyanye/cwgan-gp#6,
    junyanz/pytorch-CycleGAN-and-pix2pix#513, LixiangHan/GANs-for-1D-Signal#8; it helped: cyclomon/3dbraingen#6
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.coupling import coupling
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

# Of a sample's gradient with respect to its own input.
COUPLED = 1e-3


def check(subject: Subject) -> Iterator[Symptom]:
    """Measure the coupling of the normalizers in passes whose gradient was trained on."""
    if subject.record is None:
        return
    shapes: dict[str, tuple[int, ...]] = {}
    for step in subject.record:
        for call in step.calls:
            if call.training and call.forward is not None and step.forwards[call.forward].penalized:
                shapes.setdefault(call.path, call.shape)
    sites = {site: shapes[site.path] for site in subject.sites if site.path in shapes}
    for site, share in coupling(subject, sites).items():
        if share > COUPLED:
            yield Symptom(
                site.path,
                f"the gradient with respect to the inputs is trained on, and one sample's output depends on the "
                f"others' inputs, {share:.2g} as much as on its own",
                "layer or instance normalization in place of batch normalization: evenorm.convert(critic, to='layer')",
                {"coupling": share, "samples": shapes[site.path][0]},
            )


def _critic(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1))


def _penalized(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(3):
        real, made = torch.randn(4, 3, 8, 8), 2 * torch.randn(4, 3, 8, 8)
        between = (0.5 * (real + made)).requires_grad_()
        (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        (model(made).mean() - model(real).mean() + 10 * penalty).backward()
        optimizer.step()
        optimizer.zero_grad()


def _explained(model: nn.Module, optimizer: Optimizer) -> None:
    """A saliency map is looked at and not trained on."""

    def saliency(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(model(x).sum(), x)
        return slope

    for _ in range(3):
        saliency(torch.randn(4, 3, 8, 8).requires_grad_())
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def ailing() -> Iterator[Specimen]:
    """The penalty of WGAN-GP in a critic with batch normalization."""
    yield Specimen("WGAN-GP with batch norm", _critic(nn.BatchNorm2d), loop=_penalized)


def healthy() -> Iterator[Specimen]:
    """Normalizers of one sample; gradients with respect to inputs that nothing is trained on."""
    yield Specimen("WGAN-GP with instance norm", _critic(nn.InstanceNorm2d), loop=_penalized)
    yield Specimen("WGAN-GP with group norm", _critic(lambda c: nn.GroupNorm(1, c)), loop=_penalized)
    yield Specimen("a saliency map", _critic(nn.BatchNorm2d), loop=_explained)

"""A bias that the next normalizer cancels.

What it finds:
    The bias of a linear layer or convolution whose gradient is zero beside the weight's, and whose change moves the
    mean that a batch or instance norm subtracts, but not the model's answer.

Why it matters:
    The normalizer subtracts the mean, and the bias with it. It costs memory, time and a gradient, and does nothing;
    the normalizer's own bias takes its place.

Instead:
    ``bias=False`` in the layer before the normalizer.

Fix:
    The bias is taken out; running means lose it too, so that evaluation stays as it was.

References:
    milesial/Pytorch-UNet#325, keras-team/keras-cv#697, houqb/SPNet#11, suragnair/alpha-zero-general#73,
    matterport/Mask_RCNN#1455, 4uiiurz1/pytorch-nested-unet#39, LAION-AI/phenaki#3
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.probes.dead_bias import dead_biases
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject
from evenorm.surgery import drop_dead_bias

severity: Severity = "info"


def check(subject: Subject) -> Iterator[Symptom]:
    """Move the biases that have no gradient."""
    if not subject.trains:
        return
    found = subject.probe(dead_biases)
    for dead in found:
        assert subject.inputs is not None
        example = dict(subject.inputs.kwargs) or subject.inputs.args
        yield Symptom(
            dead.path,
            f"the bias has no effect: the normalizer {dead.norm} subtracts it again",
            "build the layer with bias=False",
            {"gradient of the bias, of the weight's": dead.ratio, "normalizer": dead.norm},
            Fix("evenorm.drop_dead_bias(model, batch)", partial(drop_dead_bias, subject.model, example)),
        )


class _Attention(nn.Module):
    """One head; the key's bias moves all scores of a query alike, which softmax forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return scores.softmax(-1) @ self.value(x)


def ailing() -> Iterator[Specimen]:
    """Conv, then norm."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    yield Specimen("a convolution before a batch norm", net, torch.randn(4, 3, 8, 8))
    instance = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 3))
    yield Specimen("before an instance norm", instance, torch.randn(4, 3, 8, 8))
    linear = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    yield Specimen("a linear layer", linear, torch.randn(16, 4))


def healthy() -> Iterator[Specimen]:
    """Biases that do something, or whose norm keeps its mean."""
    none = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    yield Specimen("bias=False", none, torch.randn(4, 3, 8, 8))
    layer = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    yield Specimen("layer norm takes only the bias's mean away", layer, torch.randn(4, 4))
    between = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    yield Specimen("an activation in between", between, torch.randn(4, 3, 8, 8))
    yield Specimen("an attention key's bias: zero gradient, no normalizer", _Attention(), torch.randn(2, 5, 8))
    frozen = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    frozen[1].eval()
    yield Specimen("a frozen batch norm subtracts a constant", frozen, torch.randn(4, 3, 8, 8))

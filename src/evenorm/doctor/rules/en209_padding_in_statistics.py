"""Padding inside the statistics.

What it finds:
    For a model that takes a mask or lengths: a normalizer whose valid outputs change when the values at padded
    positions do, in a model whose answer changes with more padding.

Why it matters:
    An item's answer depends on the longest item beside it. Zeros of padding pull means to zero and shrink variances;
    in training this enters the running statistics, and short items are normalized worst.

Instead:
    Normalization per position (layer, RMS), or masked statistics: every layer of evenorm takes ``mask=``.

Fix:
    None: the mask has to be handed on to the layer.

References:
    pytorch/pytorch#70529, pytorch/pytorch#81985, pytorch/pytorch#25910, pytorch/pytorch#30414,
    Tomiinek/Multilingual_Text_to_Speech#81, SeanNaren/deepspeech.pytorch#312, tensorflow/tensorflow#30161
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.padding import padding
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Change the padding, and look at the valid positions."""
    for path, change in subject.probe(padding).items():
        yield Symptom(
            path,
            f"other values at padded positions move its valid outputs by {change:.0%} of their size",
            "normalize per position, or pass the mask: evenorm's layers take mask=",
            {"relative change": change},
        )


class Encoder(nn.Module):
    """A convolution over time and a normalizer, of rows with a mask."""

    def __init__(self, norm: nn.Module, *, channels_last: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.channels_last = nn.Conv1d(4, 8, 1), norm, channels_last

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode (N, 4, T) with a mask (N, T) that is true where positions are valid."""
        y = self.conv(x)
        y = self.norm(y.transpose(1, 2)).transpose(1, 2) if self.channels_last else self.norm(y)
        return y * mask[:, None]


class Masked(nn.Module):
    """An instance norm over valid positions alone."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalize (N, C, T)."""
        weight = mask[:, None].to(x)
        count = weight.sum(-1, keepdim=True)
        mean = (x * weight).sum(-1, keepdim=True) / count
        variance = ((x - mean).square() * weight).sum(-1, keepdim=True) / count
        return (x - mean) * (variance + 1e-5).rsqrt()


class MaskedEncoder(Encoder):
    """Hands the mask on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode."""
        y: Tensor = self.norm(self.conv(x), mask)
        return y * mask[:, None]


class ByLengths(nn.Module):
    """The same with lengths, time by time as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode (N, T, 4), and average over each item's length."""
        y = self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        valid = (torch.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return (y * valid).sum(1) / lengths[:, None]


def _items() -> tuple[Tensor, Tensor]:
    """Three items of 10, 7 and 4 positions."""
    mask = torch.arange(10)[None] < torch.tensor([10, 7, 4])[:, None]
    return torch.randn(3, 4, 10) * mask[:, None], mask


def ailing() -> Iterator[Specimen]:
    """Statistics over all positions."""
    yield Specimen("an instance norm over time", Encoder(nn.InstanceNorm1d(8)), _items())
    yield Specimen("a batch norm in training", Encoder(nn.BatchNorm1d(8)), _items())
    x, mask = _items()
    yield Specimen("rows of all positions, by lengths", ByLengths(), (x.transpose(1, 2), mask.sum(1)))


def healthy() -> Iterator[Specimen]:
    """Statistics without padding."""
    yield Specimen("per position", Encoder(nn.LayerNorm(8), channels_last=True), _items())
    yield Specimen("with the mask", MaskedEncoder(Masked()), _items())
    fixed = Encoder(nn.BatchNorm1d(8)).eval()
    yield Specimen("running statistics", fixed, _items(), options=lambda model: {"intent": "infer"})
    images = nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8))
    yield Specimen("no notion of padding", images, torch.randn(3, 4, 10))

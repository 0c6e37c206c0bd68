"""A causal model whose normalizer sees the future.

What it finds:
    In a model that is said to be causal: a normalizer whose outputs at earlier positions move when later inputs
    change, although its own earlier inputs do not.

Why it matters:
    Group and instance norms average over time. Offline the model looks excellent, because each frame knows the mean
    of those to come; streamed, or in chunks, it answers differently.

Instead:
    Normalize each position by itself (RMS or layer norm over channels), cumulatively, or with time folded into the
    batch.

Fix:
    None: the model has to be trained with another normalizer.

References:
    Wan-Video/Wan2.1#294, lucidrains/video-diffusion-pytorch#23, lucidrains/magvit2-pytorch#41,
    PKU-YuanGroup/Open-Sora-Plan#526, Andong-Li-speech/GaGNet#2, RookieJunChen/FullSubNet-plus#5,
    fss1t/CausalStarGANv2-VC#7, seorim0/SE-using-SRL-Model#2
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.causality import leaks
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Exchange the end of the input, and look at the beginning of each normalizer's output."""
    if not subject.causal:
        return
    for path, change in subject.probe(leaks).items():
        yield Symptom(
            path,
            f"later inputs move its earlier outputs by {change:.0%} of their size",
            "normalize each position over its channels alone, or cumulatively",
            {"relative change": change},
        )


class Causal(nn.Module):
    """A convolution over time that is padded on the left, and a normalizer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.pad, self.conv, self.norm = nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 8, 3), norm
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Answer each of (N, 4, T) from the past."""
        y: Tensor = self.out(self.norm(self.conv(self.pad(x))).relu())
        return y


class PerFrame(nn.Module):
    """A layer norm over the channels of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, T)."""
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


class Cumulative(nn.Module):
    """A layer norm over all channels of all frames so far."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, T)."""
        count = x.shape[1] * torch.arange(1, x.shape[2] + 1)
        mean = x.sum(1).cumsum(-1) / count
        square = x.square().sum(1).cumsum(-1) / count
        return (x - mean[:, None]) * (square - mean.square() + 1e-5).rsqrt()[:, None]


def _causal(model: nn.Module) -> dict[str, Any]:
    return {"causal": True}


def ailing() -> Iterator[Specimen]:
    """Statistics over time."""
    frames = torch.randn(2, 4, 12)
    yield Specimen("a group norm", Causal(nn.GroupNorm(2, 8)), frames, options=_causal)
    yield Specimen("an instance norm", Causal(nn.InstanceNorm1d(8)), frames, options=_causal)


def healthy() -> Iterator[Specimen]:
    """Statistics of the past, of the frame, or of the training."""
    frames = torch.randn(2, 4, 12)
    yield Specimen("a layer norm per frame", Causal(PerFrame()), frames, options=_causal)
    yield Specimen("a batch norm, with running statistics", Causal(nn.BatchNorm1d(8)), frames, options=_causal)
    yield Specimen("cumulative", Causal(Cumulative()), frames, options=_causal)
    yield Specimen("a group norm in a model that is not causal", Causal(nn.GroupNorm(2, 8)), frames)

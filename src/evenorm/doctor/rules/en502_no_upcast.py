"""A normalizer that squares in float16.

What it finds:
    A normalizer that computes its statistics in float16: an input of a thousand, which float16 holds, gives
    another answer than float32 does.

Why it matters:
    Squares overflow at 256. Language models have activations of thousands in a few features; the mean of the
    squares is infinite there and the row comes out as zeros, without a NaN to see: fluent text turns into noise.

Instead:
    ``x.float()`` before the square, and back after the product; every fused layer does so.

Fix:
    The layer becomes evenorm's, with the same parameters.

References:
    meta-llama/llama#1048, pytorch/pytorch#66707, huggingface/diffusers#13316
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import HandLayerNorm, HandRMSNorm
from evenorm.doctor.mending import fused
from evenorm.doctor.probes.precision import compute_dtype, precision
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

# One rounding to float16 is 5e-4; an overflow is 1.
TOLERANCE = 0.05


def check(subject: Subject) -> Iterator[Symptom]:
    """Give each float16 normalizer a large input, and compare with float32."""
    sites = [site for site in subject.sites if compute_dtype(site, subject) == torch.float16]
    results = subject.probe(precision) if sites else {}
    for site in sites:
        seen = results.get(site.path)
        if seen is None or seen.large_half <= TOLERANCE:
            continue
        calls = subject.trace.of(site) if subject.trace is not None else []
        largest = max((float(call.x.abs().max()) for call in calls), default=None)
        evidence = {"relative error at 1000": seen.large_half, "largest input seen": largest}
        yield Symptom(
            site.path,
            f"squares in float16: at inputs of a thousand the relative error is {seen.large_half:.2g}",
            "compute the statistics in float32 (x.float()), or use a fused layer",
            evidence,
            fused(site.module),
        )


def ailing() -> Iterator[Specimen]:
    """Statistics in float16."""
    model = nn.Sequential(nn.Linear(4, 8), HandRMSNorm(8, eps=1e-5)).half()
    yield Specimen("an RMSNorm without an upcast", model, torch.randn(2, 4).half())
    yield Specimen("a LayerNorm without an upcast, without a batch", HandLayerNorm(16).half())


def healthy() -> Iterator[Specimen]:
    """Wide statistics, or no need for them."""
    yield Specimen("with an upcast", HandRMSNorm(8, eps=1e-5, dtype=torch.float32).half())
    yield Specimen("torch's layers in float16", nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8)).half())
    yield Specimen("in bfloat16, which does not overflow", HandRMSNorm(8, eps=1e-5).bfloat16())
    yield Specimen("in float32", HandLayerNorm(8))

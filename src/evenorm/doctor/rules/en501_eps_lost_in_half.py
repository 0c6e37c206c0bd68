"""An eps that is zero in the precision it is added in.

What it finds:
    A normalizer written by hand that adds its eps in float16, where it rounds to zero, so that a constant input
    gives NaN; and, for export, any float16 normalizer with such an eps.

Why it matters:
    The smallest number of float16 is 6e-8. An eps of 1e-12 guards nothing there: the first row of padding, or of
    zeros, is 0/0, and one NaN reaches every weight. Exporters store the constant as 0.0.

Instead:
    Add eps to a variance in float32, or take an eps of at least 1e-5.

Fix:
    eps becomes 1e-5 in place; a model that was trained with a smaller one answers slightly differently.

References:
    pytorch/pytorch#41527, tensorflow/tensorflow#24979, deepspeedai/DeepSpeed#581, wenet-e2e/wenet#907,
    huggingface/diffusers#13316
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import HandLayerNorm, HandRMSNorm
from evenorm.doctor.mending import with_eps
from evenorm.doctor.probes.precision import compute_dtype, precision
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

SMALLEST = 2.0**-24
SAFE = 1e-5


def check(subject: Subject) -> Iterator[Symptom]:
    """Give each float16 normalizer a constant input."""
    sites = [site for site in subject.sites if compute_dtype(site, subject) == torch.float16]
    results = subject.probe(precision) if sites else {}
    for site in sites:
        seen, eps = results.get(site.path), site.eps
        breaks = seen is not None and seen.constant and not seen.constant_half
        exported = subject.intent == "export" and eps is not None and eps < SMALLEST / 2
        if not breaks and not exported:
            continue
        result = "a constant input gives NaN" if breaks else "an exported graph stores it as zero"
        named = f"eps={eps:g}" if eps is not None else "its eps"
        yield Symptom(
            site.path,
            f"{named} is zero in float16, whose smallest number is {SMALLEST:.1e}: {result}",
            f"compute the variance and add eps in float32, or use eps={SAFE:g}",
            {"eps": eps, "smallest of float16": SMALLEST, "finite on a constant input": not breaks},
            with_eps(site, SAFE),
        )


def _export(model: nn.Module) -> dict[str, Any]:
    return {"intent": "export"}


def ailing() -> Iterator[Specimen]:
    """Float16 with eps of float32."""
    about = "an RMSNorm by hand with BERT's eps in float16"
    yield Specimen(about, nn.Sequential(nn.Linear(4, 8), HandRMSNorm(8, eps=1e-12)).half(), torch.randn(2, 4).half())
    yield Specimen("a LayerNorm by hand, without a batch", HandLayerNorm(8, eps=1e-9).half())
    layers = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=1e-12)).half().eval()
    yield Specimen("torch's layer in float16, to be exported", layers, options=_export)


def healthy() -> Iterator[Specimen]:
    """The same eps where it is not rounded away."""
    yield Specimen("torch's layer in float16, which computes in float32", nn.LayerNorm(8, eps=1e-12).half())
    yield Specimen("by hand with an upcast", HandRMSNorm(8, eps=1e-12, dtype=torch.float32).half())
    yield Specimen("by hand in bfloat16, which has float32's range", HandRMSNorm(8, eps=1e-12).bfloat16())
    yield Specimen("by hand in float16 with a larger eps", HandRMSNorm(8, eps=1e-5).half())
    yield Specimen("by hand in float32", HandLayerNorm(8, eps=1e-12))

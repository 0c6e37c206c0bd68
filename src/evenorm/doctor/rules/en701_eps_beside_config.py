"""An eps that is not the configuration's.

What it finds:
    Normalizers whose eps differs from the one that the given configuration names, where no normalizer of their
    kind has the configuration's. An eps that no attribute names is measured.

Why it matters:
    Frameworks default to 1e-3, 1e-5, 1e-6 and 1e-12. A port that keeps its own default drifts a little more with
    each layer: worst where activations are small, unseen in tests with unit inputs.

Instead:
    Pass the configuration's eps to every normalizer.

Fix:
    eps becomes the configuration's, in place.

References:
    Lightning-AI/lit-llama#339, nomic-ai/gpt4all#1946, huggingface/candle#271, keras-team/keras-hub#642,
    mindspore-lab/mindone#219, mosaicml/llm-foundry#1399, huggingface/transformers#585
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from evenorm.doctor.behavior import Kind
from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import HandRMSNorm
from evenorm.doctor.mending import with_eps
from evenorm.doctor.probes.precision import precision
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

EITHER = ("norm_eps", "norm_epsilon", "layernorm_epsilon", "layer_norm_epsilon", "layer_norm_eps")
NAMES: dict[Kind, tuple[str, ...]] = {
    "rms": ("rms_norm_eps", "rms_norm_epsilon", *EITHER),
    "layer": ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "layernorm_eps", "norm_eps", "norm_epsilon"),
    "batch": ("batch_norm_eps", "batch_norm_epsilon", "bn_eps"),
}


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare with what the configuration says for each kind."""
    if subject.config is None:
        return
    for kind, names in NAMES.items():
        meant = _named(subject.config, names)
        if meant is None:
            continue
        name, expected = meant
        found = {s.path: (s, _eps(subject, s)) for s in subject.sites if s.kind == kind}
        known = {path: (site, eps) for path, (site, eps) in found.items() if eps is not None}
        off = {path: pair for path, pair in known.items() if abs(pair[1] / expected - 1) > 0.02}
        # Many architectures give some layers an eps of their own; that none has the configuration's is a mistake.
        degree: Severity = "warning" if len(off) == len(known) else "info"
        for path, (site, eps) in off.items():
            yield Symptom(
                path,
                f"eps={eps:.3g}, and the configuration says {name}={expected:g}",
                f"pass eps={expected:g}",
                {"eps": eps, name: expected, "relative change of the output": _effect(subject, site, eps, expected)},
                with_eps(site, expected),
                severity=degree,
            )


def _named(config: Any, names: tuple[str, ...]) -> tuple[str, float] | None:
    """The first of these names that the configuration has."""
    for name in names:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if isinstance(value, (int, float)) and value > 0:
            return name, float(value)
    return None


def _eps(subject: Subject, site: Site) -> float | None:
    if site.eps is not None:
        return site.eps
    seen = subject.probe(precision).get(site.path)
    return seen.eps if seen is not None and seen.eps else None


def _effect(subject: Subject, site: Site, eps: float, expected: float) -> float | None:
    """How far the median row's output moves with the other eps, on the inputs that the site saw."""
    calls = subject.trace.of(site) if subject.trace is not None else []
    if not calls:
        return None
    x = calls[0].x.double()
    size = (x.square() if site.kind == "rms" else (x - x.mean(-1, keepdim=True)).square()).mean(-1)
    return float(((size + eps) / (size + expected)).sqrt().sub(1).abs().median())


class Unnamed(HandRMSNorm):
    """An eps that stands in the code alone."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=1e-5)
        self.constant = (self.eps,)
        del self.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.constant[0]) * self.weight


def _config(**values: float) -> Any:
    return lambda model: {"config": SimpleNamespace(**values)}


def ailing() -> Iterator[Specimen]:
    """Ports that kept a default."""
    model = nn.Sequential(nn.Linear(4, 8), HandRMSNorm(8, eps=1e-6))
    yield Specimen("Llama 2's 1e-5 in a port with 1e-6", model, torch.randn(2, 4), options=_config(rms_norm_eps=1e-5))
    yield Specimen("BERT's 1e-12 with torch's default", nn.LayerNorm(8), options=_config(layer_norm_eps=1e-12))
    model = nn.Sequential(nn.Linear(4, 16), Unnamed(16))
    yield Specimen("an eps in the code alone", model, options=_config(rms_norm_eps=1e-6))


def healthy() -> Iterator[Specimen]:
    """The configuration's."""
    yield Specimen("as configured", HandRMSNorm(8, eps=1e-5), options=_config(rms_norm_eps=1e-5))
    yield Specimen("in the code alone, as configured", Unnamed(16), options=_config(rms_norm_eps=1e-5))
    yield Specimen("another kind than the configuration speaks of", nn.LayerNorm(8), options=_config(rms_norm_eps=1e-6))
    yield Specimen("no configuration", nn.LayerNorm(8, eps=1e-3))

"""Weights of a normalizer that drift apart between processes.

What it finds:
    On several ranks (examined on all of them, or by a list of their checkpoints): a normalizer's γ or β that should
    be the same everywhere and differs a little.

Why it matters:
    Under sequence and tensor parallelism each rank sees a part of the tokens; the gradients of replicated weights
    need a reduction of their own. Without it ranks compute with different normalizers, the loss suffers, and merging
    the checkpoint is arbitrary.

Instead:
    Register the reduction of normalizers' gradients over the sequence parallel group.

Fix:
    None: which rank is right is not to be known.

References:
    NVIDIA/TransformerEngine#435, NVIDIA/Megatron-LM#1446, NVIDIA/Megatron-LM#474, EleutherAI/gpt-neox#1257,
    InternLM/InternLM#534
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.ranks import ranks
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

# More than rounding, and less than between the layers of two pipeline stages.
DRIFT = (1e-6, 0.2)


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the weights of all ranks."""
    found = subject.probe(ranks)
    if found is None:
        return
    for site in subject.sites:
        drifts = {}
        for name, parameter in site.parameters.items():
            held = found.everywhere(subject.names[id(parameter)])
            if held:
                size = max(float(held[0].norm()), 1e-30 + parameter.numel() ** 0.5 * (name == "bias"))
                drifts[name] = max(float((other - held[0]).norm()) / size for other in held)
        worst = max(drifts.values(), default=0.0)
        if not DRIFT[0] < worst < DRIFT[1]:
            continue
        yield Symptom(
            site.path,
            f"{' and '.join(n for n, d in drifts.items() if d > DRIFT[0])} differ between {len(found.norms)} ranks by "
            f"{worst:.2g} of their size",
            "reduce the gradients of normalizers over the ranks that share them",
            {"ranks": len(found.norms), **{f"drift of {name}": drift for name, drift in drifts.items()}},
        )


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def _ranks(noise: float, stage: float = 0.0) -> Any:
    """Checkpoints of two ranks: matrices are parts and differ, vectors are replicated."""

    def options(model: nn.Module) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            drift = (noise + stage if tensor.dim() == 1 else 1.0) * torch.randn(tensor.shape, generator=generator)
            return tensor + drift if tensor.is_floating_point() else tensor

        first = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return {"state_dict": [first, {name: moved(tensor) for name, tensor in first.items()}]}

    return options


def ailing() -> Iterator[Specimen]:
    """Drifting."""
    yield Specimen("tensor parallel ranks", _network(), options=_ranks(0.01))
    yield Specimen("an RMS norm", nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8)), options=_ranks(0.001))


def healthy() -> Iterator[Specimen]:
    """Replicated, or never meant to be."""
    yield Specimen("the same vectors, other parts of matrices", _network(), options=_ranks(0.0))
    yield Specimen("stages of a pipeline", _network(), options=_ranks(0.0, stage=2.0))

"""Weight decay on some normalizers and not on others.

What it finds:
    An optimizer with a group without decay for the normalizers' weights, or biases, that some of them are missing
    from.

Why it matters:
    The groups were made from names, and the list misses some: ``"LayerNorm.weight"`` matches neither
    ``input_layernorm`` nor ``ln_f``. The missed ones are pulled to zero.

Instead:
    Groups from the modules, or from ``p.ndim``: ``evenorm.split_weight_decay(model)``.

Fix:
    The missed parameters go into a group without decay.

References:
    huggingface/transformers#16908 #42754 #42769, deepspeedai/DeepSpeedExamples#68
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from evenorm.doctor.decay import decays, undecay
from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the groups of all weights, and of all biases."""
    if subject.optimizer is None:
        return
    found = decays(subject.model, subject.sites, subject.optimizer)
    for role in ("weight", "bias"):
        spared = [d for d in found if d.role == role and d.decay == 0 and d.own_group]
        missed = [d for d in found if d.role == role and d.decay > 0]
        if spared and missed:
            parameters = [d.parameter for d in missed]
            yield Symptom(
                missed[0].site.path,
                f"the {role}s of {counted(len(missed), 'normalizer')} decay ({missed[0].name} first), those of "
                f"{counted(len(spared), 'other')} do not ({spared[0].name} first)",
                "group by module: evenorm.split_weight_decay(model)",
                {"decayed": len(missed), "spared": len(spared), "weight decay": missed[0].decay},
                Fix(
                    "optimizer = type(optimizer)(evenorm.split_weight_decay(model), ...)",
                    partial(undecay, subject.optimizer, parameters),
                ),
            )


class _Scale(nn.Module):
    """An RMS norm by hand, whose class has no telling name."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight


class _Block(nn.Module):
    """A transformer block's skeleton, with the names that lists miss."""

    def __init__(self) -> None:
        super().__init__()
        self.LayerNorm, self.dense, self.input_layernorm = nn.LayerNorm(8), nn.Linear(8, 8), _Scale(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.input_layernorm(x + self.dense(self.LayerNorm(x)))


def _by_name(*spared: str) -> Any:
    def options(model: nn.Module) -> dict[str, object]:
        named = list(model.named_parameters())
        without = [p for name, p in named if any(word in name for word in spared)]
        rest = [p for name, p in named if not any(word in name for word in spared)]
        groups = [{"params": rest, "weight_decay": 0.01}, {"params": without, "weight_decay": 0.0}]
        return {"optimizer": AdamW(groups)}

    return options


def _by_part(model: nn.Module) -> dict[str, object]:
    """All of one part without decay: a choice about the part, not about its normalizers."""
    head = [p for name, p in model.named_parameters() if "head" in name]
    rest = [p for name, p in model.named_parameters() if "head" not in name]
    return {"optimizer": AdamW([{"params": rest, "weight_decay": 0.01}, {"params": head, "weight_decay": 0.0}])}


def ailing() -> Iterator[Specimen]:
    """Names that miss."""
    yield Specimen("a list of BERT's names", _Block(), options=_by_name("bias", "LayerNorm.weight", "side.1.weight"))


def healthy() -> Iterator[Specimen]:
    """All, none, or another intention."""
    names = _by_name("bias", "LayerNorm.weight", "layernorm.weight", "side.1.weight")
    yield Specimen("a list that has them all", _Block(), options=names)
    yield Specimen("only biases are spared", _Block(), options=_by_name("bias"))
    yield Specimen("one decay for all", _Block(), options=lambda model: {"optimizer": AdamW(model.parameters())})
    parts = nn.ModuleDict({"body": _Block(), "head": _Block()})
    yield Specimen("a new head without decay", parts, options=_by_part)

"""A deep post-norm network that starts at its full learning rate.

What it finds:
    Ten or more normalizers on the residual stream itself (each normalizes the sum of a branch and the output of
    the one before), under an optimizer without warm-up: no learning rate below its initial one, and not RAdam.

Why it matters:
    Gradients near the output of a post-norm network are large at first; Adam's second moments are not yet
    estimated. Without warm-up such networks diverge or stay on a plateau.

Instead:
    Warm-up over some thousand steps, or pre-norm: ``x + branch(norm(x))``, with one norm at the end.

Fix:
    None: the schedule or the network has to change.

References:
    pytorch/pytorch#55270, arXiv:2002.04745, LiyuanLucasLiu/Transformer-Clinic#16, wandb/senpai#3251
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.residual import post_norms
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "info"

DEEP = 10
ADAPTIVE = ("Adam", "AdamW", "Adamax", "NAdam", "RMSprop", "Adafactor")


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the norms on the stream, and look for a warm-up."""
    optimizer = subject.optimizer
    if optimizer is None or subject.intent != "train" or not _is_adaptive(optimizer) or _warms_up(optimizer):
        return
    norms = subject.probe(post_norms)
    if len(norms) < DEEP:
        return
    rate = max(group["lr"] for group in optimizer.param_groups)
    yield Symptom(
        norms[-1],
        f"the last of {len(norms)} norms on the residual stream, and {type(optimizer).__name__} starts at {rate:g} "
        "without warm-up",
        "warm the learning rate up, or normalize the branches' inputs (pre-norm)",
        {"norms on the stream": len(norms), "learning rate": float(rate), "optimizer": type(optimizer).__name__},
    )


def _is_adaptive(optimizer: Optimizer) -> bool:
    return any(base.__name__ in ADAPTIVE for base in type(optimizer).__mro__)


def _warms_up(optimizer: Optimizer) -> bool:
    """Schedulers write down the rate that they start from, and set the first one at once."""
    return any(float(group["lr"]) < float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)


def _encoder(layers: int, pre: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 8, norm_first=pre, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _adam(model: nn.Module) -> dict[str, Any]:
    return {"optimizer": torch.optim.AdamW(model.parameters(), 1e-3)}


def _warmed(model: nn.Module) -> dict[str, Any]:
    options = _adam(model)
    torch.optim.lr_scheduler.LinearLR(options["optimizer"], 0.01, total_iters=100)
    return options


def _rectified(model: nn.Module) -> dict[str, Any]:
    return {"optimizer": torch.optim.RAdam(model.parameters())}


def ailing() -> Iterator[Specimen]:
    """Deep, and at full speed."""
    yield Specimen("six layers of torch's encoder", _encoder(6), torch.randn(2, 5, 8), options=_adam)


def healthy() -> Iterator[Specimen]:
    """Warmed up, rectified, shallow, or pre-norm."""
    x = torch.randn(2, 5, 8)
    yield Specimen("with warm-up", _encoder(6), x, options=_warmed)
    yield Specimen("with RAdam", _encoder(6), x, options=_rectified)
    yield Specimen("two layers", _encoder(2), x, options=_adam)
    yield Specimen("pre-norm", _encoder(6, pre=True), x, options=_adam)

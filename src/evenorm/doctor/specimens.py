"""Specimens examined: what a rule says of them, for the tests and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import examine
from evenorm.doctor.monitor import Monitor
from evenorm.doctor.rule import Specimen

__all__ = ["examined"]


def examined(specimen: Specimen, model: nn.Module, code: str, options: Mapping[str, Any] | None = None) -> Examination:
    """What one rule says of a specimen.

    Args:
        specimen: what to do with the model: a batch, or a loop.
        model: the specimen's own, or the same in another dress.
        code: of the rule.
        options: further arguments of the examination; the specimen's, made for the model, unless given.
    """
    options = specimen.options(model) if options is None else options
    if specimen.loop is None:
        return examine(model, specimen.batch, select=[code], **options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with Monitor(model, optimizer) as monitor:
        specimen.loop(model, optimizer)
    return monitor.examination(select=[code], **options)

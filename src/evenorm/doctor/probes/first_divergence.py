"""Where a sample's way through the model first depends on the samples beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.inputs import Inputs, tensors
from evenorm.doctor.modes import evaluate
from evenorm.doctor.probes.batch_mates import TOLERANCE
from evenorm.doctor.subject import Subject

__all__ = ["first_divergence"]


def first_divergence(subject: Subject) -> str | None:
    """Path of the innermost module that first, in evaluation, answers a sample otherwise in another company."""
    inputs = subject.inputs
    if inputs is None or inputs.samples < 2:
        return None
    kept = max(inputs.samples // 2, 1)
    outputs: dict[tuple[str, int], Tensor] = {}
    _visited(subject, inputs.rows(torch.arange(kept)), lambda key, y: outputs.__setitem__(key, y.clone()))
    found: list[str] = []

    def compare(key: tuple[str, int], y: Tensor) -> None:
        other = outputs.get(key)
        if found or other is None or y.dim() == 0 or y.shape[1:] != other.shape[1:] or len(other) != kept:
            return
        if y.shape[0] == inputs.samples and float((y[:kept] - other).abs().max()) > TOLERANCE * float(
            other.abs().max()
        ):
            found.append(key[0])

    _visited(subject, inputs, compare)
    return found[0] if found else None


def _visited(subject: Subject, inputs: Inputs, see: Callable[[tuple[str, int], Tensor], object]) -> None:
    """Show every module's first output, with the module's path and the number of its call."""
    calls: dict[str, int] = {}

    def visitor(path: str) -> Callable[..., None]:
        def visit(module: nn.Module, args: Any, output: Any) -> None:
            y = next((y for y in tensors(output) if y.is_floating_point()), None)
            calls[path] = calls.get(path, -1) + 1
            if y is not None:
                see((path, calls[path]), y.detach())

        return visit

    with subject.experiment() as model, ExitStack() as exits, torch.no_grad():
        evaluate(model)
        for path, module in model.named_modules():
            exits.callback(module.register_forward_hook(visitor(path)).remove)
        inputs(model)

"""The commands `evenorm fold`, `recalibrate`, `convert` and `accelerate`: a model in, a report and a file out."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from evenorm.surgery.accelerate import accelerate
from evenorm.surgery.convert import convert
from evenorm.surgery.fold import fold
from evenorm.surgery.loading import brief
from evenorm.surgery.proof import Inputs, ProofError
from evenorm.surgery.recalibrate import recalibrate
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.timing import time_steps
from evenorm.surgery.writing import check, write

__all__ = ["run_accelerate", "run_convert", "run_fold", "run_recalibrate"]

DONE, FAILED, WRONG_ARGUMENTS = 0, 1, 2
# Torch's own words, where a model does not take its input, are a RuntimeError.
_FAULTS = (ValueError, TypeError, FloatingPointError, RuntimeError)

Operation = Callable[[], "tuple[nn.Module, SurgeryReport]"]


def run_fold(model: nn.Module, inputs: Inputs | None, out: Path | None, as_json: bool) -> int:
    """Fold in evaluation."""
    if inputs is None:
        return _wrong("fold: the data flow is recorded on inputs; give --input, for example --input 1,3,224,224")
    return _run(lambda: fold(model.eval(), inputs, report=True), inputs, out, as_json)


def run_recalibrate(model: nn.Module, loader: Any, inputs: Inputs | None, out: Path | None, as_json: bool) -> int:
    """Recalibrate on a loader, or on what it returns when it is called."""
    batches = loader() if callable(loader) else loader
    return _run(lambda: recalibrate(model.eval(), batches, report=True), inputs, out, as_json)


def run_convert(
    model: nn.Module,
    to: str,
    inputs: Inputs | None,
    virtual_batch_size: int,
    groups: int | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Convert to a kind by name."""
    kind: Any = to
    options: dict[str, Any] = {"virtual_batch_size": virtual_batch_size, "groups": groups}
    return _run(lambda: convert(model.eval(), kind, inputs, report=True, **options), inputs, out, as_json)


def run_accelerate(model: nn.Module, inputs: Inputs | None, seconds: float, as_json: bool) -> int:
    """Accelerate, and time a step before and after."""
    if inputs is None:
        return _wrong("accelerate: a step is timed on inputs; give --input, for example --input 16,3,224,224")
    before = copy.deepcopy(model)
    try:
        after, report = accelerate(model, inputs, report=True)
    except _FAULTS as fault:
        return _failed(fault)
    times = time_steps(before, after, inputs, seconds)
    if as_json:
        figures = {name: asdict(found) for name, found in times.items()}
        sys.stdout.write(json.dumps({**report.to_dict(), "seconds": figures}, indent=2) + "\n")
        return DONE
    console = Console(highlight=False)
    console.print(report)
    for name, found in times.items():
        console.print(f"{name}: {found}")
    console.print("in brackets: where the ratio lies with 95 % confidence")
    return DONE


def _run(operation: Operation, inputs: Inputs | None, out: Path | None, as_json: bool) -> int:
    try:
        if out is not None:
            check(out, inputs)
    except ValueError as fault:
        return _wrong(str(fault))
    try:
        model, report = operation()
    except _FAULTS as fault:
        return _failed(fault)
    try:
        written = None if out is None else write(model, inputs, out)
    except ProofError as fault:
        return _failed(fault)
    if as_json:
        figures = {**report.to_dict(), "written": written and asdict(written)}
        sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        return DONE
    console = Console(highlight=False)
    console.print(report)
    if written is not None:
        console.print(str(written), markup=False, soft_wrap=True)
    return DONE


def _wrong(line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return WRONG_ARGUMENTS


def _failed(fault: Exception) -> int:
    said = f"the model does not run: {brief(fault)}" if type(fault) is RuntimeError else str(fault)
    sys.stderr.write(f"{said}\n")
    return FAILED

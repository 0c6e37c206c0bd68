"""A model as a file: its weights, or a program for other runtimes that takes any number of samples if it can."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from evenorm.surgery.loading import brief
from evenorm.surgery.proof import Inputs, Proof, ProofError, observe, prove

__all__ = ["FORMATS", "Written", "check", "write"]

FORMATS = {".safetensors": ("safetensors",), ".pt2": (), ".onnx": ("onnx", "onnxscript")}
"""Endings of file names, and the packages that writing such a file needs."""

_BATCH = "batch"


@dataclass(frozen=True)
class Written:
    """A file, and for a program how many samples it takes, why no other number, and its proof."""

    path: str
    batch: str = ""
    reason: str = ""
    proof: Proof | None = None

    def __str__(self) -> str:
        batch = f", batch: {self.batch}" if self.batch else ""
        reason = f" ({self.reason})" if self.reason else ""
        return f"written: {self.path}{batch}{reason}"


def check(path: Path, inputs: Inputs | None) -> None:
    """Refuse what could not be written, before any work is done.

    Raises:
        ValueError: an unknown ending, no such folder, a package that is missing, or no inputs to trace a program with.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"--out {path}: expected a name that ends with {', '.join(FORMATS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"--out {path}: expected a file in a folder that exists")
    missing = [package for package in FORMATS[path.suffix] if find_spec(package) is None]
    if missing:
        raise ValueError(f"--out {path}: {', '.join(missing)} missing: pip install 'evenorm[export]'")
    if path.suffix != ".safetensors" and inputs is None:
        raise ValueError(f"--out {path}: a program is traced from inputs; give --input")


def write(model: nn.Module, inputs: Inputs | None, path: Path) -> Written:
    """Write weights (``.safetensors``) or a program (``.pt2``, ``.onnx``) in the model's present mode.

    The first axis of the inputs is the batch. A program is compared with the model on another number of samples,
    and where the model's code is true of the example's alone, so is the program.

    Raises:
        ProofError: the program computes something else. Nothing is written.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # Tied weights are written once for each name, so that any reader finds them.
        save_file({name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}, path)
        return Written(str(path))
    assert inputs is not None
    with torch.no_grad(), _quiet():
        program, written = _program(model, inputs, str(path))
        if path.suffix == ".pt2":
            torch.export.save(program, path)
        else:
            shapes = _shapes(model, inputs, _BATCH) if written.batch == "any" else None
            torch.onnx.export(
                program, f=str(path), dynamic_shapes=shapes, dynamo=True, verbose=False, external_data=False
            )
    return written


def _program(model: nn.Module, inputs: Inputs, path: str) -> tuple[ExportedProgram, Written]:
    """For any number of samples where that can be traced and proved, else for the example's."""
    samples = _samples(inputs)
    reason = "no input has a first axis"
    if samples is not None:
        try:
            # Of one sample nothing tells whether an axis of length 1 is the batch.
            two = _resized(inputs, samples, max(samples, 2))
            program = _export(model, two, _shapes(model, two, Dim(_BATCH)))
            return program, Written(path, "any", proof=_proved(program, model, _resized(inputs, samples, samples + 2)))
        except Exception as fault:
            # Exporters raise anything at code that they cannot follow.
            reason = _reason(fault)
    program = _export(model, inputs, None)
    return program, Written(path, str(samples or "none"), reason, _proved(program, model, inputs))


def _reason(fault: Exception) -> str:
    """The first sentence that says what the exporter could not follow; of constraints the first."""
    constraints = [line.strip() for line in str(fault).splitlines() if line.strip().startswith("- ")]
    return (constraints[0].removeprefix("- ") if constraints else brief(fault)).split(". ")[0]


def _export(model: nn.Module, inputs: Inputs, shapes: Any) -> ExportedProgram:
    args, kwargs = inputs.copied()
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def _proved(program: ExportedProgram, model: nn.Module, inputs: Inputs) -> Proof:
    found = observe(program.module(), inputs, training=None)
    proof = prove(observe(model, inputs, training=None), found, model, inputs, training=None)
    if not proof.holds:
        raise ProofError(f"the exported program differs from the model by {proof}")
    return proof


def _samples(inputs: Inputs) -> int | None:
    """The length of the first axis of the first input."""
    lengths = (len(t) for t in tree_leaves(inputs.copied()) if isinstance(t, Tensor) and t.dim())
    return next(lengths, None)


def _resized(inputs: Inputs, samples: int, wanted: int) -> Inputs:
    """The same arguments with another number of samples: the first ones again."""

    def resized(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dim() and len(value) == samples):
            return value
        return value[torch.arange(wanted, device=value.device) % samples]

    return Inputs(*tree_map(resized, inputs.copied()))


def _shapes(model: nn.Module, inputs: Inputs, name: Any) -> dict[str, Any]:
    """Which axes of which arguments may have another length, in the form that torch.export takes."""
    args, kwargs = inputs.copied()
    samples = _samples(inputs)
    arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments

    def axes(value: Any) -> dict[int, Any] | None:
        return {0: name} if isinstance(value, Tensor) and value.dim() and len(value) == samples else None

    return {key: tree_map(axes, value) for key, value in arguments.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own deprecations, and without what they miss of other packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

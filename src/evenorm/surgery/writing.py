"""A model as a file: its weights, or a program for other runtimes."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from evenorm.surgery.proof import Inputs

__all__ = ["FORMATS", "check", "write"]

FORMATS = {".safetensors": ("safetensors",), ".pt2": (), ".onnx": ("onnx", "onnxscript")}
"""Endings of file names, and the packages that writing such a file needs."""


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


def write(model: nn.Module, inputs: Inputs | None, path: Path) -> None:
    """Write weights (``.safetensors``) or a program (``.pt2``, ``.onnx``) in the model's present mode."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # Tied weights are written once for each name, so that any reader finds them.
        save_file({name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}, path)
        return
    assert inputs is not None
    args, kwargs = inputs.copied()
    with torch.no_grad(), warnings.catch_warnings():
        # The exporters' own deprecations.
        warnings.simplefilter("ignore")
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(model, args, kwargs), path)
        else:
            torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, verbose=False, external_data=False)

"""What the command line names: models, inputs, checkpoints. Code is imported only because it was named."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.inputs import Inputs
from evenorm.doctor.subject import brief

__all__ = ["config", "inputs", "model", "named", "state_dict"]


def named(option: str, target: str) -> Any:
    """The object that ``package.module:name`` names, found from the working directory."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"{option}: expected package.module:name, got {target!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module)
    except Exception as failure:
        raise ValueError(f"{option}: cannot import {module}: {brief(failure)}") from None
    for part in name.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{option}: {module} has no {name!r}")
        value = getattr(value, part)
    return value


def model(target: str) -> nn.Module:
    """The model that a target is, or that it makes when it is called."""
    value = named("TARGET", target)
    if not isinstance(value, nn.Module) and callable(value):
        try:
            value = value()
        except Exception as failure:
            raise ValueError(f"TARGET: {target} raised {brief(failure)}") from None
    if not isinstance(value, nn.Module):
        raise ValueError(
            f"TARGET: expected {target} to be a torch.nn.Module or to make one, got {type(value).__name__}"
        )
    return value


def inputs(options: Sequence[str]) -> Inputs | None:
    """Random inputs from their shapes: ``8,3,224,224``, ``2,16:int64<1000``, ``mask=2,16:bool``."""
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for option in options:
        name, equals, shape = option.rpartition("=")
        tensor = _random(option, shape, generator)
        if equals:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs) if options else None


def _random(option: str, text: str, generator: torch.Generator) -> Tensor:
    shape, _, kind = text.partition(":")
    dtype_name, _, bound = kind.partition("<")
    dtype = getattr(torch, dtype_name or "float32", None)
    sizes = [size.strip() for size in shape.split(",") if size.strip()]
    if not sizes or not all(size.isdecimal() for size in sizes) or not isinstance(dtype, torch.dtype):
        raise ValueError(f"--input: expected a shape like 8,3,224,224 or 2,16:int64<1000, got {option!r}")
    size = tuple(map(int, sizes))
    if dtype == torch.bool:
        return torch.ones(size, dtype=dtype)
    if not dtype.is_floating_point:
        return torch.randint(int(bound or 2), size, generator=generator, dtype=dtype)
    return torch.randn(size, generator=generator).to(dtype)


def state_dict(file: Path) -> dict[str, Tensor]:
    """A checkpoint: safetensors, or torch's with ``weights_only=True``; nothing in it is executed."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(f"--state-dict: {file} needs safetensors: pip install safetensors") from None
    except Exception as failure:
        raise ValueError(f"--state-dict: cannot read {file}: {brief(failure)}") from None
    # Checkpoints of trainers keep the model's part under one of these.
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise ValueError(f"--state-dict: expected names and tensors in {file}, got {type(found).__name__}")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def config(target: str) -> Any:
    """A configuration: a JSON file, or ``package.module:name``."""
    if not target.endswith(".json"):
        found = named("--config", target)
        return found() if inspect.isfunction(found) else found
    try:
        return json.loads(Path(target).read_text())
    except (OSError, ValueError) as failure:
        raise ValueError(f"--config: cannot read {target}: {brief(failure)}") from None

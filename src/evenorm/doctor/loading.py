"""What the command line names: models, inputs, checkpoints. Code is imported only because it was named."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenorm.doctor.inputs import Inputs
from evenorm.surgery.loading import brief, model, named

__all__ = ["config", "inputs", "model", "named", "state_dict"]


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

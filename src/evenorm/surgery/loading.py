"""What the command line names: an object, or a model. Code is imported only because it was named."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["brief", "model", "named"]


def brief(failure: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text[:300]}" if text else type(failure).__name__


def named(option: str, target: str) -> Any:
    """The object that ``package.module:name`` names, found from the working directory.

    Raises:
        ValueError: the target is no such name, or cannot be imported.
    """
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


def model(target: str, option: str = "TARGET") -> nn.Module:
    """The model that a target is, or that it makes when it is called.

    Raises:
        ValueError: it is no model and makes none.
    """
    value = named(option, target)
    if not isinstance(value, nn.Module) and callable(value):
        try:
            value = value()
        except Exception as failure:
            raise ValueError(f"{option}: {target} raised {brief(failure)}") from None
    if not isinstance(value, nn.Module):
        raise ValueError(
            f"{option}: expected {target} to be a torch.nn.Module or to make one, got {type(value).__name__}"
        )
    return value

"""A layer becomes another in place: the same object with another class, and what it was is remembered.

Everyone who holds the layer keeps holding it: parents, optimizers (by its parameters), hooks, wrappers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["MEMORY", "Original", "become", "restore"]

MEMORY = "_evenorm_original"


@dataclass
class Original:
    """A layer's first class, and the attributes that surgery has set since, as they were."""

    kind: type[nn.Module]
    attributes: dict[str, tuple[Any, ...]] = field(default_factory=dict)


def become(module: nn.Module, kind: type[nn.Module], attributes: Mapping[str, Any] | None = None) -> None:
    """Give a layer another class and other attributes; what it was first is kept for :func:`restore`."""
    own = module.__dict__
    original: Original = own.setdefault(MEMORY, Original(type(module)))
    for name, value in (attributes or {}).items():
        # A tuple of one value, or of none where there was no such attribute.
        original.attributes.setdefault(name, (own[name],) if name in own else ())
        own[name] = value
    module.__class__ = kind


def restore(module: nn.Module) -> str | None:
    """Make a layer what it was before any surgery; returns the name of what it had become, if anything."""
    original: Original | None = module.__dict__.pop(MEMORY, None)
    if original is None:
        return None
    became = type(module).__name__
    for name, value in original.attributes.items():
        module.__dict__.pop(name, None)
        if value:
            module.__dict__[name] = value[0]
    module.__class__ = original.kind
    return became

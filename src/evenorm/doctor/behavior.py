"""Whether a module normalizes, found by experiment: the class and its name say nothing.

A normalizer forgets the scale of its input (f(4x) = f(x)), changes smoothly with it, and keeps the shape.
Which outputs one element of the input moves shows which elements share statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from evenorm.doctor.snapshot import undisturbed

__all__ = ["Behavior", "Kind", "behavior"]

Kind = Literal["batch", "instance", "group", "layer", "rms"]

SCALE = 4.0
# An eps of 1e-3 beside a variance of 1 moves the output by 5e-4.
SAME = 5e-3


@dataclass(frozen=True)
class Behavior:
    """What an experiment showed: the kind, and the reduced axes counted from the front or, negative, the back."""

    kind: Kind
    axes: tuple[int, ...]
    groups: int = 1


def behavior(module: nn.Module) -> Behavior | None:
    """What kind of normalizer a module is, in training; ``None`` if it is none. The module is left as it was.

    >>> behavior(nn.LayerNorm(16)), behavior(nn.ReLU())
    (Behavior(kind='layer', axes=(-1,), groups=1), None)
    """
    own = [p for p in module.parameters() if p.is_floating_point()]
    if any(p.is_meta for p in own):
        return None
    with undisturbed(module), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module.train()
        for parameter in own:
            # A weight that starts at zero would hide what the module does.
            parameter.data = torch.rand_like(parameter, dtype=torch.float32) + 0.5
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.float()
        for x in _inputs(own):
            found = _experiment(module, x)
            if found is not None:
                return found
    return None


def _inputs(parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    """Inputs that the parameters' sizes suggest, features last and channels second."""
    size = max((p.numel() for p in parameters), default=16)
    device = parameters[0].device if parameters else None
    for shape in ((3, 5, size), (3, size, 5, 5), (3, size, 7), (6, size)):
        yield torch.randn(shape, device=device) + 0.5


def _experiment(module: nn.Module, x: Tensor) -> Behavior | None:
    """Compare answers to an input, to the input scaled, and to the input with one element moved."""
    try:
        y = module(x)
        if not isinstance(y, Tensor) or y.shape != x.shape or not y.isfinite().all():
            return None
        scaled = module(x * SCALE)
        moved = x.clone()
        moved[(1, *(0 for _ in x.shape[1:]))] += 0.5
        touched = module(moved)
        shifted = module(x + 3.0)
        nudged = module(x * (1 + 0.02 * torch.randn_like(x)))
    except Exception:
        # Other arguments, another shape: not a normalizer of this input.
        return None
    spread = y.std()
    smooth = 0 < (nudged - y).abs().median() < 0.1 * spread
    if not (spread > 0 and smooth and (scaled - y).abs().max() < SAME * spread):
        return None
    changed = (touched - y).abs() > 1e-6 * spread
    centered = bool((shifted - y).abs().max() < SAME * spread)
    return _kind(changed, centered)


def _kind(changed: Tensor, centered: bool) -> Behavior | None:
    """Read the kind from the outputs that one element moved."""
    at = changed.nonzero()
    extents = [int(at[:, axis].unique().numel()) for axis in range(changed.dim())] if len(at) else []
    reduced = tuple(axis for axis, extent in enumerate(extents) if extent > 1)
    if not reduced:
        return None
    last = changed.dim() - 1
    if reduced == (last,):
        return Behavior("layer" if centered else "rms", (-1,))
    if reduced[0] == 0:
        return Behavior("batch", reduced)
    if reduced == (1,):
        return Behavior("layer" if centered else "rms", (1,))
    if 1 not in reduced:
        return Behavior("instance", reduced)
    return Behavior("group", reduced, changed.shape[1] // extents[1])

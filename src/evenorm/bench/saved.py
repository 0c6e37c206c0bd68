"""The suite ``saved``: what autograd keeps from a forward pass for its backward pass, counted and not timed.

Our fused layer beside torch's layers one after the other, for every activation and place of a residual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from evenorm.bench.case import Case, Data
from evenorm.bench.peers import OURS
from evenorm.bench.peers.module import VARIANTS
from evenorm.bench.table import Table
from evenorm.epilogue import ACTIVATIONS, Place

__all__ = ["SUITE", "Bytes", "Saved", "cases", "count", "kept", "tables"]

SUITE = "saved"

# Small, since only the share of parameters and statistics depends on them.
_SHAPES = {
    "BatchNorm2d": (8, 64, 28, 28),
    "GroupNorm": (1, 320, 16, 16),
    "LayerNorm": (1, 197, 768),
    "RMSNorm": (1, 64, 4096),
}
_PLACES: tuple[Place | None, ...] = (None, "after", "before")


@dataclass(frozen=True)
class Bytes:
    """What is kept, in bytes: tensors of the input's size, and the rest, which is parameters and statistics."""

    large: int
    small: int


@dataclass(frozen=True)
class Saved:
    """What one layer keeps with what is fused with it, and what torch's separate layers keep."""

    layer: str
    what: str
    """The norm, a residual and an activation, in the order in which they are computed: ``add+norm+silu``."""
    size: str
    dtype: str
    input: int
    """Bytes of the input."""
    ours: Bytes
    separate: Bytes

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from every other."""
        return (self.layer, self.what, self.size, self.dtype)

    @property
    def more(self) -> bool:
        """Whether we keep more of the input's size than torch does."""
        return self.ours.large > self.separate.large


def cases() -> Iterator[Case]:
    """Every norm, activation and place of a residual, in float32 and bfloat16."""
    for dtype, place, name, (layer, shape) in product(("float32", "bfloat16"), _PLACES, ACTIVATIONS, _SHAPES.items()):
        activation = None if name == "identity" else name
        yield Case(SUITE, layer, shape, dtype, activation=activation, residual=place)


def count(case: Case) -> Saved:
    """Count what one forward pass of each keeps."""
    data = Data.of(case)
    ours, separate = (kept(VARIANTS[name](case, data).call("forward"), case.elements) for name in (OURS, "torch"))
    return Saved(case.layer, case.what, case.size, case.dtype, case.bytes, ours, separate)


def kept(forward: Callable[[], object], elements: int) -> Bytes:
    """What autograd keeps of a forward pass, each storage once; large is what has at least so many elements."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # The tensors themselves: the address of a freed one could come again.
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    large = sum(t.untyped_storage().nbytes() for t in found.values() if t.numel() >= elements)
    return Bytes(large, sum(t.untyped_storage().nbytes() for t in found.values()) - large)


def tables(found: Sequence[Saved]) -> Iterator[Table]:
    """A table for each dtype: what is fused down, norms across."""
    for dtype in dict.fromkeys(saved.dtype for saved in found):
        group = [saved for saved in found if saved.dtype == dtype]
        cells = {(saved.what, saved.layer): saved for saved in group}
        layers = tuple(dict.fromkeys(saved.layer for saved in group))
        yield Table(
            f"Saved for backward, {dtype}",
            "Tensors of the input's size that autograd keeps between forward and backward: evenorm / torch's layers one"
            f" after the other. Parameters and statistics come to at most {_rest((s.ours, s.input) for s in group)} / "
            f"{_rest((s.separate, s.input) for s in group)} of the input.",
            ("", *layers),
            [
                (what, *(_cell(cells.get((what, layer))) for layer in layers))
                for what in dict.fromkeys(saved.what for saved in group)
            ],
        )


def _rest(found: Iterator[tuple[Bytes, int]]) -> str:
    return f"{max(kept.small / size for kept, size in found):.1%}"


def _cell(saved: Saved | None) -> str:
    if saved is None:
        return "–"
    ours, separate = (kept.large / saved.input for kept in (saved.ours, saved.separate))
    return f"{ours:g} / {separate:g}"

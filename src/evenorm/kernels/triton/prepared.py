"""What a call's signature decides: the view, the tiles and every launch but its tensors. Made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.kernels.operands import dense_strides
from evenorm.kernels.triton.bundle import Block, Finishing, Layout, Slots, Space
from evenorm.kernels.triton.tile import LOOP, WHOLE, WHOLE_BACKWARD, Tile, parts, pieces, power, share, tile, word
from evenorm.kernels.triton.view import Quad, View, view
from evenorm.pattern import Pattern
from evenorm.plan import Plan, Strides, Unplannable, make_plan

__all__ = ["ALIGNED", "Launch", "Prepared", "planned", "prepared"]

# Of an address, in bytes: what the compiler knows to be a multiple of this it loads in wide words.
ALIGNED = 16
# Moments that one program merges.
_MERGED = 2048
# Of a thread: 16 warps of a multiprocessor have so many each, which leaves it other work while some of it waits.
_REGISTERS = 128


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel by its name, its programs, its numbers in their order, and what it is compiled for.

    Kinds of operands differ in dtype, in alignment and in which are there; each has a compiled kernel of its own.
    """

    kernel: str
    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]
    compiled: dict[tuple[Any, ...], Callable[..., None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """The launches of a signature; each is made when first asked for."""

    plan: Plan
    view: View
    affine: Affine
    epilogue: Epilogue
    centered: bool
    eps: float
    dtype: torch.dtype
    device: torch.device

    @property
    def real(self) -> torch.dtype:
        """In which dtype elements are computed with."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @cached_property
    def word(self) -> int:
        """Elements that are read together."""
        return word(self.view)

    @cached_property
    def reads(self) -> tuple[bool, bool]:
        """Whether x and dy lie in such words, from an aligned address on."""
        return self.view.reads_words(self.view.x, self.word), self.view.reads_words(self.view.dy, self.word)

    @cached_property
    def adds(self) -> bool:
        """Whether the forward pass can add something to x on its way: a tile holds whole statistics, all lie alike."""
        # Strides of a level of size 1 mean nothing.
        levels = zip(self.view.size, self.view.x, self.view.dense, strict=True)
        return (
            self._whole.single and self.plan.x is not None and all(n == 1 or mine == dense for n, mine, dense in levels)
        )

    @cached_property
    def pieces(self) -> int:
        """Into how many pieces the forward pass cuts a statistic."""
        return pieces(self.view, self._whole)[0]

    @cached_property
    def pieces_back(self) -> int:
        """Into how many the backward pass does; where it is one, dx comes in the same sweep as the sums."""
        return pieces(self.view, self._whole_back)[0]

    @cached_property
    def forward(self) -> Launch:
        """Moments, and y where a statistic is in one piece."""
        whole = self._whole
        cut, each = pieces(self.view, whole)
        return Launch(
            "forward",
            self.view.size.batch * whole.blocks * cut,
            (self._space(whole), cut, each, self.view.statistics),
            {
                "EPS": self.eps,
                "CENTERED": self.centered,
                "SINGLE": whole.single,
                "maxnreg": _REGISTERS,
                **self._constants(whole),
            },
        )

    @cached_property
    def merge(self) -> Launch:
        """The pieces' moments as one."""
        rows = power(self.pieces)
        width = max(1, _MERGED // rows)
        return Launch(
            "merge",
            -(-self.view.statistics // width),
            (self.view.statistics, self.pieces),
            {"EPS": self.eps, "PIECES": rows, "STATISTICS": width},
        )

    @cached_property
    def apply(self) -> Launch:
        """y of given statistics."""
        part = self._part
        return Launch(
            "apply",
            self.view.size.batch * part.count * part.blocks,
            (self._space(part),),
            self._constants(part),
        )

    @cached_property
    def gradient(self) -> Launch:
        """The sums of the gradient; dx, where a statistic is in one piece."""
        found, whole = self.view, self._whole_back
        cut, each = pieces(found, whole)
        shared = share(found, whole)
        blocks = found.size.batch * whole.blocks
        return Launch(
            "gradient",
            shared.programs * cut,
            (
                *(self._space(whole), self._slots(shared.lanes), found.values),
                *(cut, each, blocks, shared.rows, found.statistics),
            ),
            {
                "EPS": self.eps,
                "CENTERED": self.centered,
                "SINGLE": whole.single,
                "STEADY": shared.steady,
                "maxnreg": _REGISTERS,
                **self._constants(whole),
            },
        )

    @cached_property
    def keeps_parameters(self) -> bool:
        """Whether the parameters' sums come with the others; else programs of their own find them."""
        return share(self.view, self._whole_back).lanes > 0

    @cached_property
    def partial_rows(self) -> int:
        """How many partial sums there are of each parameter's gradient."""
        if self.keeps_parameters:
            return self.pieces_back * share(self.view, self._whole_back).lanes
        own = parts(self.view, self._whole_back)
        return own.splits * own.repeats

    @cached_property
    def grad_parameters(self) -> Launch:
        """The parameters' gradients by programs that each keep to some parameters."""
        found, whole = self.view, self._whole_back
        own = parts(found, whole)
        return Launch(
            "grad_parameters",
            own.own * whole.count * own.splits,
            (
                *(self._space(whole), self._slots(own.repeats), found.values),
                *(own.rows, own.per_program, own.splits),
            ),
            {"EPS": self.eps, **self._constants(whole)},
        )

    @cached_property
    def grad_input(self) -> Launch:
        """dx of given sums."""
        part = self._part
        return Launch(
            "grad_input",
            self.view.size.batch * part.count * part.blocks,
            (self._space(part),),
            self._constants(part),
        )

    @property
    def order(self) -> Tensor | None:
        """The slots in the order of their parameters, where a parameter has several."""
        if self.view.slots == self.parameters:
            return None
        if "_order" not in self.__dict__ and _capturing(self.device):
            # What a CUDA graph makes is there when it is replayed, and not for other calls.
            return self._ordered()
        return self._order

    @cached_property
    def _order(self) -> Tensor:
        return self._ordered()

    def _ordered(self) -> Tensor:
        return torch.argsort(self.view.parameters_of_slots(self.device), stable=True)

    @cached_property
    def parameters(self) -> int:
        """How many parameters there are; one where there are none, for all elements."""
        return torch.Size(self.plan.parameter_shape).numel()

    @cached_property
    def _whole(self) -> Tile:
        return tile(self.view, WHOLE, self.dtype.itemsize)

    @cached_property
    def _whole_back(self) -> Tile:
        return tile(self.view, WHOLE_BACKWARD, self.dtype.itemsize)

    @cached_property
    def _part(self) -> Tile:
        return tile(self.view, LOOP, self.dtype.itemsize)

    def _space(self, tile: Tile) -> Space:
        found, unit = self.view, tile.unit
        size = found.size._replace(inner=found.size.inner // unit)
        dense, x, dy = (
            Quad(s.batch // unit, s.outer // unit, s.group // unit, 1) for s in (found.dense, found.x, found.dy)
        )
        affine = (found.span, found.count, found.stretch)
        return Space(size, dense, x, dy, affine, tile.across, tile.count, tile.blocks)

    def _slots(self, lanes: int) -> Slots:
        return Slots(self.view.slot, self.view.slots, self.partial_rows * self.view.slots, lanes)

    def _constants(self, tile: Tile) -> dict[str, Any]:
        found, affine, epilogue = self.view, self.affine, self.epilogue
        return {
            "LAYOUT": Layout(int(found.along), found.wraps, found.stretched),
            "FINISH": Finishing(epilogue.activation, epilogue.slope, affine.offset, affine.cast == "before"),
            "TILE": Block(tile.outer, tile.group, tile.inner, tile.outer_unit, tile.group_unit, tile.unit),
            "DOUBLE": self.real == torch.float64,
            "num_warps": tile.warps,
        }


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being made."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=4096)
def planned(
    pattern: Pattern, affine: Affine, shape: tuple[int, ...], strides: Strides, grad_strides: Strides | None
) -> Plan | str:
    """The plan for a shape and its strides, or why there is none."""
    dense = dense_strides(shape, strides)
    try:
        return make_plan(pattern, affine, shape, strides, dense, grad_strides)
    except Unplannable as reason:
        return str(reason)


@lru_cache(maxsize=4096)
def prepared(
    pattern: Pattern,
    affine: Affine,
    epilogue: Epilogue,
    centered: bool,
    eps: float,
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, ...],
    strides: Strides,
    grad_strides: Strides | None,
) -> Prepared:
    """All of a call but its tensors."""
    plan = planned(pattern, affine, shape, strides, grad_strides)
    if isinstance(plan, str):
        raise ValueError(f"the triton kernel has no plan: {plan}")
    return Prepared(plan, view(plan), affine, epilogue, centered, eps, dtype, device)

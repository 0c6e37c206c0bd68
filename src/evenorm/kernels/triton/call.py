"""A call: the view and tiles of a signature, made once, and the launches on a call's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.kernels import mask as masks
from evenorm.kernels.finish import Finish
from evenorm.kernels.operands import Operands
from evenorm.kernels.triton.tile import LOOP, WHOLE, WHOLE_BACKWARD, Tile, parts, pieces, power, share, tile
from evenorm.kernels.triton.view import Quad, View, strides_on, view
from evenorm.pattern import Pattern
from evenorm.plan import Plan, Strides, Unplannable, make_plan

__all__ = ["Call", "Prepared", "prepared"]

# Moments that one program merges.
_MERGED = 2048


@dataclass(frozen=True)
class Prepared:
    """All of a call's launches that its signature decides."""

    plan: Plan
    view: View
    itemsize: int
    device: torch.device

    @cached_property
    def forward_tile(self) -> Tile:
        """A whole statistic, to be normalized."""
        return tile(self.view, WHOLE, self.itemsize)

    @cached_property
    def backward_tile(self) -> Tile:
        """A whole statistic with its gradient."""
        return tile(self.view, WHOLE_BACKWARD, self.itemsize)

    @cached_property
    def part(self) -> Tile:
        """A part of what each element is computed of by itself."""
        return tile(self.view, LOOP, self.itemsize)

    @cached_property
    def order(self) -> Tensor | None:
        """The slots in the order of their parameters, where a parameter has several."""
        if self.view.slots == self.parameters:
            return None
        return torch.argsort(self.view.parameters_of_slots(self.device), stable=True)

    @cached_property
    def parameters(self) -> int:
        """How many parameters there are; one where there are none, for all elements."""
        return torch.Size(self.plan.parameter_shape).numel()


@lru_cache(maxsize=4096)
def prepared(
    pattern: Pattern,
    affine: Affine,
    shape: tuple[int, ...],
    strides: Strides,
    grad_strides: Strides | None,
    itemsize: int,
    device: torch.device,
) -> Prepared | str:
    """The launches for a shape and its strides, or why there is no plan."""
    dense = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    try:
        plan = make_plan(pattern, affine, shape, strides, dense, grad_strides)
    except Unplannable as reason:
        return str(reason)
    return Prepared(plan, view(plan), itemsize, device)


class Call(Operands):
    """One call: its launches, and its operands where the kernels want them."""

    def __init__(
        self,
        x: Tensor,
        pattern: Pattern,
        finish: Finish,
        mask: Tensor | None,
        *,
        centered: bool = True,
        eps: float = 0.0,
        dy: Tensor | None = None,
    ) -> None:
        grad_strides = None if dy is None else dy.stride()
        found = prepared(pattern, finish.affine, x.shape, x.stride(), grad_strides, x.element_size(), x.device)
        if isinstance(found, str):
            raise ValueError(f"the triton kernel has no plan: {found}")
        super().__init__(found.plan, x, finish, dy)
        self.prepared, self.view = found, found.view
        self.centered, self.eps = centered, eps
        self.weight, self.bias = self.parameter(finish.weight), self.parameter(finish.bias)
        self.real = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.mask, self.mask_strides, self.counts = None, (0, 0, 0, 0), None
        if mask is not None:
            self.mask, self.mask_strides = self._laid(mask)
            self.counts = self.to_memory(masks.counts(mask, pattern.bind(x.shape)).clamp_min(1))

    def new_residual_gradient(self) -> Tensor | None:
        """Room for dz, where it is wanted and not dy: an activation or a mask stands between."""
        if self.finish.has_residual and self.mask is not None:
            return self.new_output()
        return super().new_residual_gradient()

    @property
    def whole(self) -> bool:
        """Whether a program takes all values of a statistic, so that dx comes in the same sweep as the sums."""
        return pieces(self.view, self.prepared.backward_tile)[0] == 1

    def moments(self, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and M2 in memory's order; y too, where there is room for it."""
        found, tile = self.view, self.prepared.forward_tile
        cut, per_piece = pieces(found, tile)
        mean, m2 = self.new_statistics(), self.new_statistics()
        if cut == 1:
            self._survey(y, mean, m2, None, cut, per_piece)
            return mean, m2
        means, m2s, counts = torch.empty((3, cut, found.statistics), dtype=torch.float64, device=self.like.device)
        self._survey(None, means, m2s, counts, cut, per_piece)
        rstd = self.new_statistics()
        rows = power(cut)
        width = max(1, _MERGED // rows)
        self._launch(
            "merge",
            -(-found.statistics // width),
            *(counts, means, m2s, mean, m2, rstd, found.statistics, cut),
            EPS=self.eps,
            PIECES=rows,
            STATISTICS=width,
        )
        if y is not None:
            self.apply(y, mean, rstd)
        return mean, m2

    def apply(self, y: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """Y of statistics in memory's order."""
        tile = self.prepared.part
        self._launch(
            "apply",
            self.view.size.batch * tile.count * tile.blocks,
            *(self.x, y, mean, rstd, self.weight, self.bias, self.residual, self.mask, self.mask_strides),
            *(*self._levels(self.view.x), tile.across, tile.count, tile.blocks),
            **self._constants(tile),
        )

    def gradient(
        self, mean: Tensor, spread: Tensor, kind: str, dx: Tensor | None = None, dz: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Σ γ·dz and Σ γ·dz·x̂, stacked; Σ dz·x̂ and Σ dz of the parameters.

        Args:
            kind: what ``spread`` is, ``"rstd"`` or ``"m2"``.
            dx: room for the input's gradient, where a program takes a ``whole`` statistic.
            dz: room for the residual's.
        """
        found, tile = self.view, self.prepared.backward_tile
        cut, per_piece = pieces(found, tile)
        shared = share(found, tile)
        sums = torch.empty((cut, 2, found.statistics), dtype=torch.float64, device=self.like.device)
        partial = None
        if shared.lanes:
            # Of a statistic in several pieces, one may hold parameters that another does not.
            partial = self._new_partial(cut * shared.lanes, zeros=cut > 1)
        self._launch(
            "gradient",
            shared.programs * cut,
            *(self.dy, self.x, dx, dz, mean, spread, self.counts, *self._way_back, sums, partial),
            *(self.mask_strides, *self._levels(found.x, found.dy), tuple(found.slot), found.slots),
            *(0 if partial is None else partial[0].numel(), shared.lanes, found.values),
            *(tile.across, tile.count, tile.blocks, cut, per_piece),
            *(found.size.batch * tile.blocks, shared.rows, found.statistics),
            SPREAD=kind,
            EPS=self.eps,
            CENTERED=self.centered,
            SINGLE=tile.single,
            STEADY=shared.steady,
            **self._constants(tile),
        )
        if partial is None:
            partial = self._parameters(mean, spread, kind)
        return (sums[0] if cut == 1 else sums.sum(0)), *self._summed(partial)

    def grad_input(
        self, dx: Tensor, dz: Tensor | None, mean: Tensor, rstd: Tensor, c1: Tensor | None, c2: Tensor | None
    ) -> None:
        """dx of sums over the count, in memory's order."""
        tile = self.prepared.part
        self._launch(
            "grad_input",
            self.view.size.batch * tile.count * tile.blocks,
            *(self.dy, self.x, dx, dz, mean, rstd, c1, c2, *self._way_back, self.mask_strides),
            *(*self._levels(self.view.x, self.view.dy), tile.across, tile.count, tile.blocks),
            **self._constants(tile),
        )

    def _survey(
        self, y: Tensor | None, mean: Tensor, m2: Tensor, counts: Tensor | None, cut: int, per_piece: int
    ) -> None:
        tile = self.prepared.forward_tile
        self._launch(
            "forward",
            self.view.size.batch * tile.blocks * cut,
            *(self.x, y, mean, m2, counts, self.weight, self.bias, self.residual, self.mask, self.mask_strides),
            *(*self._levels(self.view.x), tile.across, tile.count, tile.blocks, cut, per_piece, self.view.statistics),
            EPS=self.eps,
            CENTERED=self.centered,
            SINGLE=tile.single,
            **self._constants(tile),
        )

    def _parameters(self, mean: Tensor, spread: Tensor, kind: str) -> Tensor:
        """Partial sums of the parameters' gradients by programs that each keep to some of the parameters."""
        found, tile = self.view, self.prepared.backward_tile
        shared = parts(found, tile)
        partial = self._new_partial(shared.splits * shared.repeats)
        self._launch(
            "grad_parameters",
            shared.own * tile.count * shared.splits,
            *(self.dy, self.x, mean, spread, self.counts, *self._way_back, partial),
            *(self.mask_strides, *self._levels(found.x, found.dy), tuple(found.slot), found.slots),
            *(partial[0].numel(), shared.repeats, found.values, tile.across, tile.count, tile.blocks),
            *(shared.rows, shared.per_program, shared.splits),
            SPREAD=kind,
            EPS=self.eps,
            **self._constants(tile),
        )
        return partial

    def _new_partial(self, rows: int, *, zeros: bool = False) -> Tensor:
        new = torch.zeros if zeros else torch.empty
        return new((2, rows, self.view.slots), dtype=self.real, device=self.like.device)

    def _summed(self, partial: Tensor) -> Tensor:
        """The parameters' gradients in memory's order, each of its partial sums in one fixed order."""
        slots = partial.sum(1, dtype=torch.float64)
        if self.prepared.order is not None:
            slots = slots[:, self.prepared.order].unflatten(1, (self.prepared.parameters, -1)).sum(2)
        return slots.reshape(2, *self.new_parameter().shape)

    def _laid(self, mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The mask as bytes, and its strides on the levels; a copy where it has none."""
        mask = mask.view(torch.uint8).expand(self.like.shape)
        strides = strides_on(self.view, mask, self.plan.dense)
        if strides is None:
            room = torch.empty_strided(mask.shape, self.plan.dense, dtype=mask.dtype, device=mask.device)
            mask, strides = room.copy_(mask), self.view.dense
        return mask, tuple(strides)

    @property
    def _way_back(self) -> tuple[Tensor | None, ...]:
        """What the way back needs of the epilogue's from x̂ to y; the mask."""
        if self.finish.epilogue.activation == "identity":
            return self.weight, None, None, None, self.mask
        if self.output is None:
            return self.weight, self.bias, self.residual, None, self.mask
        return self.weight, None, None, self.output, self.mask

    def _levels(self, *read: Quad) -> tuple[tuple[int, ...], ...]:
        """Sizes, strides and the parameters' place, as the kernels order them."""
        found, unit = self.view, self.prepared.part.unit
        strides = [tuple(s // unit for s in levels[:3]) for levels in (found.dense, *read)]
        size = (found.size.outer, found.size.group, found.size.inner // unit)
        return size, *strides, (found.span, found.count, found.stretch)

    def _constants(self, tile: Tile) -> dict[str, Any]:
        """What a kernel is compiled for."""
        found, affine, epilogue = self.view, self.finish.affine, self.finish.epilogue
        return {
            "LAYOUT": (int(found.along), found.wraps, found.stretched),
            "FINISH": (epilogue.activation, epilogue.slope, affine.offset, affine.cast == "before"),
            "TILE": (tile.outer, tile.group, tile.inner, tile.unit),
            "REAL": self.real,
            "num_warps": tile.warps,
        }

    def _launch(self, kernel: str, programs: int, *operands: Any, **constants: Any) -> None:
        # Where there is no GPU nothing comes as far as this.
        from evenorm.kernels.triton.device import launch

        launch(kernel, programs, *operands, **constants)

"""A call: a signature's launches on its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenorm.kernels import mask as masks
from evenorm.kernels.finish import Finish
from evenorm.kernels.operands import Operands
from evenorm.kernels.triton.bundle import Beside
from evenorm.kernels.triton.prepared import ALIGNED, Launch, Prepared, prepared
from evenorm.kernels.triton.view import Quad, strides_on
from evenorm.pattern import Pattern

__all__ = ["Call"]


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
        made: Prepared | None = None,
    ) -> None:
        """See :meth:`of_sum` for what is ``made``."""
        dy = None if dy is None else dy.resolve_neg()
        made = made or _prepared(x, pattern, finish, centered, eps, dy)
        if made.word > 1 and not (_is_even(x, made.reads[0]) and (dy is None or _is_even(dy, made.reads[1]))):
            # In narrower words a row would be added up in another order.
            x, dy = x.clone(), None if dy is None else dy.clone()
            made = _prepared(x, pattern, finish, centered, eps, dy)
        self.prepared = made
        super().__init__(made.plan, x, finish, dy)
        self.residual, self.output = _aligned(self.residual), _aligned(self.output)
        self.weight, self.bias = _aligned(self.parameter(finish.weight)), _aligned(self.parameter(finish.bias))
        self.mask: Tensor | None = None
        self.mask_strides = Quad(0, 0, 0, 0)
        self.counts: Tensor | None = None
        if mask is not None:
            self.mask, self.mask_strides = self._laid(mask)
            self.counts = self.to_memory(masks.counts(mask, pattern.bind(x.shape)).clamp_min(1))

    @classmethod
    def of_sum(cls, x: Tensor, pattern: Pattern, finish: Finish, centered: bool, eps: float) -> Call | None:
        """The call whose forward pass adds something to x first; ``None`` where that is an operation of its own.

        Asked of x as it lies, of which nothing is copied before.
        """
        made = _prepared(x, pattern, finish, centered, eps, None)
        return cls(x, pattern, finish, None, centered=centered, eps=eps, made=made) if made.adds else None

    def new_residual_gradient(self) -> Tensor | None:
        """Room for dz, where it is wanted and not dy: an activation or a mask stands between."""
        if self.finish.has_residual and self.mask is not None:
            return self.new_output()
        return super().new_residual_gradient()

    def moments(
        self, y: Tensor | None = None, addend: Tensor | None = None, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and M2 in memory's order; y too, where there is room for it.

        Args:
            addend, total: what is added to x first, and room for the sum, where a tile holds whole statistics.
        """
        made = self.prepared
        mean, m2 = self.new_statistics(), self.new_statistics()
        if made.pieces == 1:
            self._launch(made.forward, self.x, y, mean, m2, None, _aligned(addend), total, self._way_there)
            return mean, m2
        size = (3, made.pieces, made.view.statistics)
        means, m2s, counts = torch.empty(size, dtype=torch.float64, device=self.like.device)
        self._launch(made.forward, self.x, None, means, m2s, counts, None, None, self._way_there)
        rstd = self.new_statistics()
        self._launch(made.merge, counts, means, m2s, mean, m2, rstd)
        if y is not None:
            self.apply(y, mean, rstd)
        return mean, m2

    def apply(self, y: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """y of statistics in memory's order."""
        self._launch(self.prepared.apply, self.x, y, mean, rstd, self._way_there)

    def sums(self, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Σ γ·dz and Σ γ·dz·x̂, stacked; the parameters' as :meth:`gradient` gives them."""
        cut = self.prepared.pieces_back
        sums = torch.empty((cut, 2, self.prepared.view.statistics), dtype=torch.float64, device=self.like.device)
        of_parameters = self.gradient(mean, rstd, "rstd", sums=sums)
        return (sums[0] if cut == 1 else sums.sum(0)), of_parameters

    def gradient(
        self,
        mean: Tensor,
        spread: Tensor,
        kind: str,
        dx: Tensor | None = None,
        dz: Tensor | None = None,
        carried: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> Tensor:
        """Σ dz·x̂ and Σ dz of the parameters, stacked.

        Args:
            kind: what ``spread`` is, ``"rstd"`` or ``"m2"``.
            dx: room for the input's gradient, where a statistic is in one piece.
            dz: room for the residual's.
            carried: what is added to the input's.
            sums: room for those of each piece.
        """
        made = self.prepared
        # Of a statistic in several pieces, one may hold parameters that another does not.
        new = torch.zeros if made.pieces_back > 1 else torch.empty
        partial = new((2, made.partial_rows, made.view.slots), dtype=made.real, device=self.like.device)
        beside = (mean, spread, self.counts, self._way_back)
        kept = partial if made.keeps_parameters else None
        self._launch(made.gradient, self.dy, self.x, dx, dz, _aligned(carried), *beside, sums, kept, SPREAD=kind)
        if kept is None:
            self._launch(made.grad_parameters, self.dy, self.x, *beside, partial, SPREAD=kind)
        return self._summed(partial)

    def grad_input(
        self,
        dx: Tensor,
        dz: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        c1: Tensor | None,
        c2: Tensor | None,
        carried: Tensor | None = None,
    ) -> None:
        """dx of sums over the count, in memory's order, and what is carried added to it."""
        beside = (_aligned(carried), mean, rstd, c1, c2, self._way_back)
        self._launch(self.prepared.grad_input, self.dy, self.x, dx, dz, *beside)

    def pair(self, of_parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Both gradients in the order of the affine's axes, in memory of their own, as an operator's outputs are."""
        d_weight, d_bias = of_parameters
        return self.to_affine(d_weight), self.to_affine(d_bias.clone())

    def _summed(self, partial: Tensor) -> Tensor:
        """The parameters' gradients in memory's order, each of its partial sums in one fixed order."""
        slots = partial.sum(1, dtype=torch.float64)
        order = self.prepared.order
        if order is not None:
            slots = slots[:, order].unflatten(1, (self.prepared.parameters, -1)).sum(2)
        return slots.reshape(2, *self.parameter_shape)

    def _laid(self, mask: Tensor) -> tuple[Tensor, Quad]:
        """The mask as bytes, and its strides on the levels; a copy where it has none."""
        mask = mask.view(torch.uint8).expand(self.like.shape)
        strides = strides_on(self.prepared.view, mask, self.plan.dense)
        if strides is None:
            room = torch.empty_strided(mask.shape, self.plan.dense, dtype=mask.dtype, device=mask.device)
            mask, strides = room.copy_(mask), self.prepared.view.dense
        return mask, strides

    @property
    def _way_there(self) -> Beside:
        return Beside(self.weight, self.bias, self.residual, None, self.mask, self.mask_strides)

    @property
    def _way_back(self) -> Beside:
        """What the way back needs of the epilogue's from x̂ to y."""
        if self.finish.epilogue.activation == "identity":
            return self._way_there._replace(bias=None, residual=None)
        if self.output is None:
            return self._way_there
        return self._way_there._replace(bias=None, residual=None, output=self.output)

    def _launch(self, launch: Launch, *operands: Any, **constants: Any) -> None:
        # Where there is no GPU nothing comes as far as this.
        from evenorm.kernels.triton.device import start

        start(launch, operands, constants)


def _prepared(x: Tensor, pattern: Pattern, finish: Finish, centered: bool, eps: float, dy: Tensor | None) -> Prepared:
    signature = (pattern, finish.affine, finish.epilogue, centered, eps, x.dtype, x.device, x.shape, x.stride())
    return prepared(*signature, None if dy is None else dy.stride())


def _is_even(tensor: Tensor, reads: bool) -> bool:
    return reads and tensor.data_ptr() % ALIGNED == 0


def _aligned(tensor: Tensor | None) -> Tensor | None:
    """A tensor from an address on from which wide words are read."""
    return tensor if tensor is None or tensor.data_ptr() % ALIGNED == 0 else tensor.clone()

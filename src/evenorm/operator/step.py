"""What happens to moments between the verbs: merging with those of other ranks, correcting toward a history."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evenorm.moments import Moments
from evenorm.recipe import Recipe
from evenorm.statistics import History, Source, Tag
from evenorm.statistics.group import AGAIN, DIFFERENTIATED, FORWARD, Group, merge, total
from evenorm.statistics.lockstep import Lane, current
from evenorm.statistics.renorm import Correction, Renorm

__all__ = ["Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """What happens between the verbs of one call.

    Attributes:
        group: the ranks to merge with, and the tag of this call.
        renorm: the clamps, with the history in the shape of the statistics.
        again: whether this call is a recomputation.
    """

    group: Group | None = None
    tag: Tensor | None = None
    renorm: Renorm | None = None
    history: History | None = None
    again: bool = False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        source: Source,
        x: Tensor,
        history: History | None,
        tag: Tag,
        caller: object,
        *,
        again: bool,
    ) -> Step:
        """What happens between the verbs of a call.

        Raises:
            ValueError: a window that the micro-batches do not fit, or no history to correct toward.
        """
        group: Group | None = None if source.synced is None else source.synced.group
        if group is not None and group.size == 1:
            group = None
        renormed = None
        if source.window is not None:
            lane = current()
            if lane is not None:
                group = Lane(lane.turns, lane.index, group)
                if lane.turns.size > source.window.window:
                    raise ValueError(
                        f"{caller}: the window has {source.window.window} micro-batches, lockstep brought "
                        f"{lane.turns.size}"
                    )
            elif source.window.gradients == "exact":
                raise ValueError(
                    f"{caller}: exact gradients need all {source.window.window} micro-batches at once; run the step in "
                    f"evenorm.lockstep(step, batches), or choose Accumulated(…, gradients='approximate')"
                )
        if source.renorm is not None:
            if history is None:
                raise ValueError(
                    f"{caller}: Renorm needs a history to correct toward; give history=, or track statistics"
                )
            kept = recipe.pattern.kept_names(len(recipe.pattern.bind(x.shape).kept))
            shape = iter(history.mean.shape)
            wide = [next(shape) if name in recipe.history else 1 for name in kept]
            renormed = history.copied()._replace(
                mean=history.mean.clone().reshape(wide), variance=history.variance.clone().reshape(wide)
            )
        number = None
        if group is not None:
            tag = tag if history is None else tag._replace(updates=history.updates)
            number = tag.number(torch.empty(0, dtype=torch.float64, device=x.device))
        return cls(group, number, source.renorm, renormed, again)

    def merged(self, local: Moments) -> Moments:
        """With those of other ranks."""
        if self.group is None or self.tag is None:
            return local
        return merge(self.group, self.tag, AGAIN if self.again else FORWARD, local)

    def correction(self, whole: Moments, eps: float) -> Correction | None:
        """r and d, where the batch is renormalized."""
        if self.renorm is None or self.history is None:
            return None
        return self.renorm.correction(whole, self.history, eps)

    def differentiable(self, local: Moments) -> Moments:
        """The same merging, through which autograd differentiates to any order.

        μ = Σ nₖμₖ / n,  M2 = Σ M2ₖ + nₖ(μₖ − μ)²
        """
        if self.group is None or self.tag is None:
            return local
        count = local.count
        if not isinstance(count, Tensor):
            count = torch.full((1,) * local.mean.dim(), float(count), dtype=local.mean.dtype, device=local.mean.device)
        with torch.no_grad():
            counts = total(self.group, self.tag, DIFFERENTIATED, count)
        mean = _Total.apply(local.mean * count, self.group, self.tag) / counts.clamp_min(1)
        m2 = _Total.apply(local.M2 + count * (local.mean - mean).square(), self.group, self.tag)
        return Moments(counts, mean, m2)


class _Total(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients, by the same function."""

    @staticmethod
    def forward(ctx: object, values: Tensor, group: Group, tag: Tensor) -> Tensor:
        ctx.group, ctx.tag = group, tag  # type: ignore[attr-defined]
        return total(group, tag, DIFFERENTIATED, values)

    @staticmethod
    def backward(ctx: object, *d: Tensor) -> tuple[Tensor | None, None, None]:
        return _Total.apply(d[0], ctx.group, ctx.tag), None, None  # type: ignore[attr-defined]

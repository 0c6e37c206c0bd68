"""Operations between two layers that put values elsewhere and change none: views, transpositions, copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["Move", "Moves", "WatchMoves", "moved_axes"]

_NAMES = {
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "contiguous", "clone"),
}


@dataclass(frozen=True, eq=False)
class Move:
    """One such operation; ``again`` does the same to another tensor of the source's shape."""

    source: Tensor
    result: Tensor
    again: Callable[[Tensor], Tensor]


class Moves(nn.Module):
    """Several, one after the other."""

    def __init__(self, moves: Sequence[Move]) -> None:
        super().__init__()
        self.moves = [move.again for move in moves]

    def forward(self, x: Tensor) -> Tensor:
        """The moved tensor."""
        for again in self.moves:
            x = again(x)
        return x


def moved_axes(moves: Sequence[Move], tensor: Tensor, axis: int) -> set[int]:
    """The axes on which the indices of one axis lie, in their order, after all moves; tried on the indices."""
    # In the same layout, on which it depends whether a view is possible.
    labels = torch.empty_like(tensor, dtype=torch.int64, device="cpu").copy_(_indices(tensor.shape, axis))
    for move in moves:
        labels = move.again(labels)
    channels = tensor.shape[axis]
    axes = (k for k, size in enumerate(labels.shape) if size == channels)
    return {k for k in axes if labels.equal(_indices(labels.shape, k))}


def _indices(shape: torch.Size, axis: int) -> Tensor:
    return torch.arange(shape[axis]).view([-1 if k == axis else 1 for k in range(len(shape))]).expand(shape)


class WatchMoves(TorchFunctionMode):
    """Tells ``note`` of each move that is made; ``during`` is entered while it is made."""

    def __init__(self, note: Callable[[Move], None], during: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.note, self.during = note, during

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if getattr(func, "__name__", "") not in _NAMES or not args or not isinstance(args[0], Tensor):
            return func(*args, **options)
        source = args[0]
        with self.during():
            result = func(*args, **options)
            # Of other tensors the shape alone counts, as in x.view_as(y).
            rest, named = tree_map_only(Tensor, torch.empty_like, (args[1:], options))
        if result is not source and (result.dtype, result.numel()) == (source.dtype, source.numel()):
            self.note(Move(source, result, lambda t: func(t, *rest, **named)))
        return result

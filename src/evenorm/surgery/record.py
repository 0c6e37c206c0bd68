"""The data flow of a whole model, recorded while it runs: which layer reads the very tensor that another wrote.

A run follows any model, with any control flow, where tracing with symbols ends at the first branch. Tensors are
told apart by identity. What only moves values, such as a transposition, is followed; a change in place or any
other operation between two layers is a use of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evenorm.surgery.moves import Move, WatchMoves
from evenorm.surgery.proof import Inputs, tensors
from evenorm.surgery.snapshot import untouched

__all__ = ["Call", "Link", "Recording", "record"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: a tensor in, a tensor out; ``plain`` says that there was nothing else.

    ``source`` and ``result`` tell who reads what; ``given`` and ``made`` are their values at the time of the call.
    """

    layer: nn.Module
    source: Tensor | None
    result: Tensor | None
    given: Tensor
    made: Tensor

    @property
    def plain(self) -> bool:
        """Whether one tensor went in and one came out."""
        return self.source is not None and self.result is not None


@dataclass(frozen=True)
class Link:
    """A call whose output another reads, and the moves in between."""

    first: Call
    second: Call
    moves: tuple[Move, ...] = ()


@dataclass
class Recording:
    """The calls of layers, who wrote each tensor and who read it."""

    calls: dict[nn.Module, list[Call]] = field(default_factory=lambda: defaultdict(list))
    writers: dict[int, Call] = field(default_factory=dict)
    readers: dict[int, list[Call | Move | str]] = field(default_factory=lambda: defaultdict(list))
    moves: dict[int, Move] = field(default_factory=dict)
    # While they are kept, no other tensor gets their identity.
    kept: list[Tensor] = field(default_factory=list)

    def before(self, call: Call) -> Link | None:
        """The layer's call whose output a call reads."""
        tensor, moves = call.source, list[Move]()
        while move := self.moves.get(id(tensor)):
            moves.insert(0, move)
            tensor = move.source
        writer = self.writers.get(id(tensor))
        return None if writer is None else Link(writer, call, tuple(moves))

    def after(self, call: Call) -> list[Link | str]:
        """All that read the output of a call: calls of layers, names of operations, the model's output."""
        return [] if call.result is None else list(self._after(call, call.result, ()))

    def _after(self, call: Call, tensor: Tensor, moves: tuple[Move, ...]) -> Iterator[Link | str]:
        for reader in self.readers[id(tensor)]:
            if isinstance(reader, Move):
                yield from self._after(call, reader.result, (*moves, reader))
            else:
                yield Link(call, reader, moves) if isinstance(reader, Call) else reader

    def is_read(self, tensor: Tensor) -> bool:
        """Whether anything outside of the layers reads a tensor."""
        return bool(self.readers[id(tensor)])

    def read_by(self, tensor: Tensor, reader: Call | Move | str) -> None:
        """Note a use."""
        self.kept.append(tensor)
        self.readers[id(tensor)].append(reader)

    def moved(self, move: Move) -> None:
        """Note a move."""
        self.read_by(move.source, move)
        self.moves[id(move.result)] = move


class _Watch(TorchDispatchMode):
    """Notes what every operation outside of the layers reads."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording, self.inside = recording, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self.recording.read_by(value, func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def record(model: nn.Module, inputs: Inputs, is_layer: Callable[[nn.Module], bool]) -> Recording:
    """Run a model in its present modes and record its flow between layers; nothing of the model changes."""
    found = Recording()
    watch = _Watch(found)
    stack: list[tuple[Tensor | None, Tensor]] = []

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        watch.inside += 1
        stack.append((given[0], given[0].detach().clone()) if len(given) == 1 else (None, torch.empty(0)))
        if len(given) != 1:
            for tensor in given:
                found.read_by(tensor, type(layer).__name__)

    def leave(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        source, given = stack.pop()
        made = result if isinstance(result, Tensor) else None
        call = Call(layer, source, made, given, torch.empty(0) if made is None else made.detach().clone())
        watch.inside -= 1
        found.calls[layer].append(call)
        if source is not None:
            found.read_by(source, call)
        if call.result is not None:
            found.kept.append(call.result)
            found.writers[id(call.result)] = call

    with untouched(model):
        for module in model.modules():
            if is_layer(module):
                module.register_forward_pre_hook(enter, with_kwargs=True)
                module.register_forward_hook(leave, with_kwargs=True)
        with watch, WatchMoves(lambda move: None if watch.inside else found.moved(move), watch.paused):
            output = inputs(model)
    for tensor in tensors(output):
        found.read_by(tensor, "the model's output")
    return found

"""Data flow inside one module: torch.fx with every child whole, save those that are opened."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from evenorm.surgery.proof import Inputs

__all__ = ["Arguments", "Trace", "TraceError", "bind", "has_other_forward", "trace"]


class TraceError(RuntimeError):
    """A module whose data flow cannot be followed; the message says why."""


@dataclass(frozen=True)
class Arguments:
    """How a module is called: which arguments carry tensors, and the others, on which its code may turn."""

    types: dict[str, type]
    constants: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of an observed call."""

    @staticmethod
    def of(module: nn.Module, inputs: Inputs | None) -> Arguments:
        """From an observed call; without one, arguments that have a default are taken to have it."""
        parameters = inspect.signature(type(module).forward).parameters
        if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
            raise TraceError("its forward takes *args")
        if inputs is None:
            plain = [p for p in list(parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
            wanted = [p.name for p in plain if p.default is p.empty]
            given = {p.name: p.default for p in plain if p.default is not p.empty}
            return Arguments(dict.fromkeys(wanted, Tensor), given)
        values = bind(module, inputs.args, dict(inputs.kwargs or {}))
        carrying = {name: type(value) for name, value in values.items() if _carries_tensors(value)}
        shapes = {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
        return Arguments(carrying, {name: value for name, value in values.items() if name not in carrying}, shapes)


_signature = lru_cache(maxsize=4096)(inspect.signature)


def has_other_forward(module: nn.Module) -> bool:
    """Whether a module's forward is not the one of its class."""
    own = module.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of ``**kwargs`` too."""
    bound = _signature(type(module).forward).bind(module, *args, **kwargs)
    bound.apply_defaults()
    values = dict(list(bound.arguments.items())[1:])
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            values.update(values.pop(parameter.name))
    return values


def _carries_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_carries_tensors, value))
    return isinstance(value, Tensor)


@dataclass(frozen=True)
class Trace:
    """The graph of one module in one mode, and the modules whose code it contains."""

    graph: fx.Graph
    inlined: list[nn.Module] = field(default_factory=list)
    lengths: dict[tuple[str, int | None], int] = field(default_factory=dict)
    """Lengths of arguments' axes (of ``None``: how many axes) that were read; the graph is true of these alone."""


class _Shape(Sequence[int]):
    """A shape that tells which of its lengths are read, or how many there are: no tuple, whose reading goes unseen."""

    def __init__(self, lengths: tuple[int, ...], note: Callable[[int | None], None]) -> None:
        self.lengths, self.note = lengths, note

    def __getitem__(self, key: Any) -> Any:
        for k in range(len(self.lengths))[key] if isinstance(key, slice) else (range(len(self.lengths))[key],):
            self.note(k)
        return self.lengths[key]

    def __len__(self) -> int:
        self.note(None)
        return len(self.lengths)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, _Shape) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))


class _Argument(fx.Proxy):
    """A tensor whose shape is known."""

    known: _Shape

    @staticmethod
    def of(node: fx.Node, tracer: fx.Tracer, shape: tuple[int, ...], note: Callable[[int | None], None]) -> _Argument:
        found = _Argument(node, tracer)
        found.known = _Shape(shape, note)
        return found

    @property
    def shape(self) -> _Shape:
        return self.known

    def size(self, axis: int | None = None) -> Any:
        return self.known if axis is None else self.known[axis]

    def dim(self) -> int:
        return len(self.known)


Shapes = Mapping[nn.Module, Mapping[str, tuple[int, ...]]]
"""Of the arguments of modules, in observed calls."""


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module, arguments: Arguments, opened: Collection[nn.Module], shapes: Shapes) -> None:
        super().__init__()
        self.arguments, self.opened, self.shapes = arguments, opened, shapes
        self.own = shapes.get(module, {})
        self.inlined: list[nn.Module] = []
        self.lengths: dict[tuple[str, int | None], int] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        name = str(node.target)
        if node.op != "placeholder" or name not in self.own:
            return super().proxy(node)
        return _Argument.of(node, self, self.own[name], lambda k: self._note(name, k))

    def _note(self, name: str, axis: int | None) -> None:
        self.lengths[name, axis] = len(self.own[name]) if axis is None else self.own[name][axis]

    def _note_all(self, _: int | None) -> None:
        """A length inside may come from any of the arguments' lengths."""
        for name, shape in self.own.items():
            for axis in (None, *range(len(shape))):
                self._note(name, axis)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if m in self.opened and self.own.keys() == self.arguments.types.keys():
            known = self.shapes.get(m, {})
            values = {
                name: _Argument.of(value.node, self, known[name], self._note_all)
                if isinstance(value, fx.Proxy) and name in known
                else value
                for name, value in bind(m, args, kwargs).items()
            }
            args, kwargs = _arranged(m, values)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m not in self.opened:
            return True
        self.inlined.append(m)
        return False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        given = {name: self.create_proxy("placeholder", name, (), {}) for name in self.arguments.types}
        return partial(_call_by_name, root_fn, self.root, {**self.arguments.constants, **given}), []

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _Shape):
            a = tuple(a)
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not any(a is b for b in self.root.buffers()):
            # Made while tracing, perhaps at random: the graph would hold this one for ever.
            raise TraceError("it makes tensors that do not come from its input")
        return super().create_arg(a)


def _arranged(module: nn.Module, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name, as a call of the module takes them."""
    only = [p.name for p in _signature(type(module).forward).parameters.values() if p.kind is p.POSITIONAL_ONLY]
    return tuple(values[name] for name in only[1:]), {n: v for n, v in values.items() if n not in only}


def _call_by_name(function: Any, module: nn.Module, values: dict[str, Any]) -> Any:
    args, kwargs = _arranged(module, values)
    result = function(module, *args, **kwargs)
    _check_result(result)
    return result


def _check_result(result: Any) -> None:
    """Refuse what a graph would return as something else: a dict in place of a class derived from it."""
    if type(result) in (tuple, list):
        for part in result:
            _check_result(part)
    elif not isinstance(result, (fx.Proxy, bool, int, float, str, type(None))):
        raise TraceError(f"it returns a {type(result).__name__}")


def trace(
    module: nn.Module, arguments: Arguments, opened: Collection[nn.Module] = (), shapes: Shapes | None = None
) -> Trace:
    """The data flow of a module in its present mode; ``shapes`` are for code that computes with lengths.

    Raises:
        TraceError: its code cannot be followed with symbols for tensors.
    """
    if isinstance(module, torch.jit.ScriptModule) or has_other_forward(module):
        raise TraceError("its forward is not the one of its class")
    try:
        return _trace(module, arguments, opened, {})
    except TraceError:
        if not arguments.shapes:
            raise
        return _trace(module, arguments, opened, {**(shapes or {}), module: arguments.shapes})


def _trace(module: nn.Module, arguments: Arguments, opened: Collection[nn.Module], shapes: Shapes) -> Trace:
    tracer = _Tracer(module, arguments, opened, shapes)
    try:
        graph = tracer.trace(module)
    except TraceError:
        raise
    except Exception as fault:
        # The code of a model may raise anything when it is given symbols.
        reason = str(fault).splitlines()[0] if str(fault) else repr(fault)
        raise TraceError(f"torch.fx does not follow it: {reason}") from None
    return Trace(graph, [module, *tracer.inlined], tracer.lengths)

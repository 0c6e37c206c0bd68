"""Data flow inside one module: torch.fx with every child whole, save those that are opened."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
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
    lengths: dict[tuple[str, int], int] = field(default_factory=dict)
    """Lengths of arguments' axes that the code has asked for; the graph is true of these alone."""


class _Shape(tuple[int, ...]):
    """A shape that notes which of its lengths are read."""

    name: str
    read: dict[tuple[str, int], int]

    def __getitem__(self, key: Any) -> Any:
        for k in range(len(self))[key] if isinstance(key, slice) else (range(len(self))[key],):
            self.read[self.name, k] = tuple.__getitem__(self, k)
        return tuple.__getitem__(self, key)

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])


class _Argument(fx.Proxy):
    """A tensor whose shape is known."""

    known: _Shape

    @property
    def shape(self) -> _Shape:
        return self.known

    def size(self, axis: int | None = None) -> Any:
        return self.known if axis is None else self.known[axis]

    def dim(self) -> int:
        return len(self.known)


class _Tracer(fx.Tracer):
    def __init__(self, arguments: Arguments, opened: Collection[nn.Module], shapes: Mapping[str, Any]) -> None:
        super().__init__()
        self.arguments, self.opened, self.shapes = arguments, opened, shapes
        self.inlined: list[nn.Module] = []
        self.lengths: dict[tuple[str, int], int] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if node.op != "placeholder" or node.target not in self.shapes:
            return super().proxy(node)
        found = _Argument(node, self)
        found.known = _Shape(self.shapes[str(node.target)])
        found.known.name, found.known.read = str(node.target), self.lengths
        return found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m not in self.opened:
            return True
        self.inlined.append(m)
        return False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        given = {name: self.create_proxy("placeholder", name, (), {}) for name in self.arguments.types}
        return partial(_call_by_name, root_fn, self.root, {**self.arguments.constants, **given}), []

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not any(a is b for b in self.root.buffers()):
            # Made while tracing, perhaps at random: the graph would hold this one for ever.
            raise TraceError("it makes tensors that do not come from its input")
        return super().create_arg(a)


def _call_by_name(function: Any, module: nn.Module, values: dict[str, Any]) -> Any:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    positional = [values[p.name] for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
    result = function(module, *positional, **{name: value for name, value in values.items() if name not in taken})
    _check_result(result)
    return result


def _check_result(result: Any) -> None:
    """Refuse what a graph would return as something else: a dict in place of a class derived from it."""
    if type(result) in (tuple, list):
        for part in result:
            _check_result(part)
    elif not isinstance(result, (fx.Proxy, bool, int, float, str, type(None))):
        raise TraceError(f"it returns a {type(result).__name__}")


def trace(module: nn.Module, arguments: Arguments, opened: Collection[nn.Module] = ()) -> Trace:
    """The data flow of a module in its present mode.

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
        # Code that computes with lengths is followed with those of the observed call.
        return _trace(module, arguments, opened, arguments.shapes)


def _trace(module: nn.Module, arguments: Arguments, opened: Collection[nn.Module], shapes: Mapping[str, Any]) -> Trace:
    tracer = _Tracer(arguments, opened, shapes)
    try:
        graph = tracer.trace(module)
    except TraceError:
        raise
    except Exception as fault:
        # The code of a model may raise anything when it is given symbols.
        reason = str(fault).splitlines()[0] if str(fault) else repr(fault)
        raise TraceError(f"torch.fx does not follow it: {reason}") from None
    return Trace(graph, [module, *tracer.inlined], tracer.lengths)

"""A module's forward with some normalizers fused, which steps aside wherever it might differ.

A traced forward is true only of what was traced: the mode, the children, the plain attributes, the arguments
that are no tensors. All of it is compared at each call. When anything differs, or a hook hangs on a module
whose call the rewriting skips, or a compiler or exporter looks on, the module's own forward runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as globally

from evenorm import kernels
from evenorm.epilogue import Epilogue
from evenorm.layers import Layer
from evenorm.surgery.change import become
from evenorm.surgery.trace import Arguments, Trace, bind

__all__ = ["Code", "Forward", "fused", "is_hooked", "rewrite"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FUSED = "_evenorm_fused"
_PLAIN = (bool, int, float, str, type(None))

_twins: WeakKeyDictionary[Layer, dict[Epilogue, Layer]] = WeakKeyDictionary()


def is_hooked(module: nn.Module) -> bool:
    """Whether anything is to be called when the module is."""
    own = module.__dict__
    return any(own[hooks] for hooks in _HOOKS)


def fused(layer: Layer, input: Tensor, residual: Tensor | None, epilogue: Epilogue) -> Tensor:
    """activation(layer(input) + residual) in one sweep; one after the other where the shapes do not allow it."""
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        return epilogue.apply(layer(input) + residual)
    own, twin = layer.__dict__, _twin(layer, epilogue)
    y: Tensor = twin.forward(input, residual=residual)
    for name, value in twin.__dict__.items():
        if name != "epilogue" and own.get(name) is not value:
            own[name] = value
    return y


def _twin(layer: Layer, epilogue: Epilogue) -> Layer:
    """The layer with another epilogue: the same parameters, buffers and settings.

    Kept as long as these are the same objects, since a layer knows the calls that it has made before.
    """
    twins = _twins.setdefault(layer, {})
    twin = twins.get(epilogue)
    if twin is None or type(twin) is not type(layer) or not _alike(twin.__dict__, layer.__dict__):
        twin = twins[epilogue] = object.__new__(type(layer))
        twin.__dict__ = {**layer.__dict__, "epilogue": epilogue}
    return twin


def _alike(twin: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    return twin.keys() - {"epilogue"} == layer.keys() - {"epilogue"} and all(
        twin[name] is value for name, value in layer.items() if name != "epilogue"
    )


@dataclass(frozen=True)
class _Look:
    """What a traced module looked like."""

    module: nn.Module
    kind: type[nn.Module]
    children: tuple[nn.Module | None, ...]
    plain: dict[str, Any]

    @staticmethod
    def of(module: nn.Module) -> _Look:
        return _Look(module, type(module), tuple(module._modules.values()), _plain(module))

    def holds(self) -> bool:
        module = self.module
        return (
            type(module) is self.kind
            and tuple(module._modules.values()) == self.children
            and not is_hooked(module)
            and _plain(module) == self.plain
        )


def _same(traced: Any, given: Any) -> bool:
    return traced is given or (type(traced) is type(given) and type(given) in _PLAIN and bool(traced == given))


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if type(value) in _PLAIN}


class Code:
    """A graph as a function, and what must look as it did when it was traced."""

    def __init__(self, flow: Trace, skipped: list[nn.Module], layers: list[Layer]) -> None:
        python = flow.graph.python_code("self")
        names = {**python.globals, "Epilogue": Epilogue}
        exec(compile(python.src, "<evenorm.surgery>", "exec"), names)
        self.source: str = python.src
        self.function: Callable[..., Any] = names["forward"]
        self.looks = [_Look.of(module) for module in skipped]
        self.layers, self.lengths = layers, flow.lengths

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the graph is still true of the module and of these arguments."""
        return (
            all(
                value.dim() == length if axis is None else value.shape[axis : axis + 1] == (length,)
                for (name, axis), length in self.lengths.items()
                for value in (values[name],)
            )
            and all(look.holds() for look in self.looks)
            and all(isinstance(layer, Layer) and not is_hooked(layer) for layer in self.layers)
        )


class Forward:
    """The fused code of a module, one for each mode, and the arguments that it was traced with."""

    def __init__(self, module: nn.Module, arguments: Arguments, codes: Mapping[bool, Code]) -> None:
        self.module, self.arguments, self.codes = module, arguments, dict(codes)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
        """The fused code with its arguments, if it is true of this call."""
        code = self.codes.get(self.module.training)
        if code is None or globally._has_any_global_hook():
            return None
        values = self._matched(args, kwargs)
        return partial(code.function, self.module, **values) if values is not None and code.holds(values) else None

    def _matched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The tensors by name, if the other arguments are those that were traced."""
        try:
            values = bind(self.module, args, kwargs)
        except TypeError:
            return None
        types, constants = self.arguments.types, self.arguments.constants
        if values.keys() != types.keys() | constants.keys():
            return None
        if not all(_same(value, values[name]) for name, value in constants.items()):
            return None
        if not all(isinstance(values[name], kind) for name, kind in types.items()):
            return None
        return {name: values[name] for name in types}

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        """The copied model is fused as well."""
        new = memo[id(self)] = object.__new__(Forward)
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Code is not stored: a loaded model runs its own forward until it is accelerated again."""
        return {**self.__dict__, "codes": {}}


def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What is called in place of a module's forward: its fused code, or its own."""
    if not (torch.compiler.is_compiling() or kernels.exporting() or torch.jit.is_tracing()):  # type: ignore[attr-defined]
        fused_call = self.__dict__[_FUSED].prepare(args, kwargs)
        if fused_call is not None:
            return fused_call()
    return type(self).forward(self, *args, **kwargs)


def rewrite(module: nn.Module, fused_forward: Forward) -> None:
    """Put a forward in place of the module's own, for :func:`restore` to take away."""
    # Copied, a method belongs to the copy; stored, it is looked up by its name and becomes the class's own.
    become(module, type(module), {_FUSED: fused_forward, "forward": MethodType(forward, module)})

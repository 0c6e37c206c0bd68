"""What may follow a normalizer in one sweep, as it is written in models: activations and additions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from evenorm.epilogue import Epilogue
from evenorm.surgery.proof import Inputs
from evenorm.surgery.trace import Arguments, TraceError, trace

__all__ = ["activation_of", "addends", "epilogue_of", "is_activation", "writes", "writes_to_the_first"]

_MODULES: dict[type[nn.Module], Callable[[Any], Epilogue]] = {
    nn.ReLU: lambda m: Epilogue("relu"),
    nn.ReLU6: lambda m: Epilogue("relu6"),
    nn.LeakyReLU: lambda m: Epilogue("leaky_relu", m.negative_slope),
    nn.SiLU: lambda m: Epilogue("silu"),
    nn.Hardswish: lambda m: Epilogue("hardswish"),
    nn.GELU: lambda m: Epilogue("gelu_tanh" if m.approximate == "tanh" else "gelu"),
}
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.relu6,), "relu6"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    **dict.fromkeys((F.silu,), "silu"),
    **dict.fromkeys((F.hardswish,), "hardswish"),
    **dict.fromkeys((F.gelu,), "gelu"),
}
_OTHERS = {"sigmoid", "tanh", "elu", "selu", "celu", "softplus", "mish", "hardsigmoid", "hardtanh", "prelu", "rrelu"}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_WRITES_TO_THE_FIRST = (operator.iadd, "add_")


def activation_of(module: nn.Module) -> Epilogue | None:
    """The activation that a module is: torch's by class, another without parameters by what its code calls."""
    make = _MODULES.get(type(module))
    try:
        if make is not None:
            return make(module)
        if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            return None
        if type(module).__module__.startswith("torch.nn"):
            return None
        graph = trace(module, Arguments.of(module, Inputs((torch.zeros(1),))), set(module.modules())).graph
    except (TraceError, TypeError, ValueError):
        return None
    nodes = list(graph.nodes)
    if [n.op for n in nodes] not in (
        ["placeholder", "call_function", "output"],
        ["placeholder", "call_method", "output"],
    ):
        return None
    return epilogue_of(nodes[1], {})


def epilogue_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Epilogue | None:
    """The activation that a node of a graph computes of its one tensor, if it is one."""
    if node.op == "call_module":
        return activation_of(modules[str(node.target)]) if len(node.args) == 1 and not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    name = _FUNCTIONS.get(node.target)
    options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    rest = [a for a in node.args if not isinstance(a, fx.Node)]
    if name == "leaky_relu":
        slope = options.get("negative_slope", rest[0] if rest else 0.01)
        return Epilogue(name, slope) if isinstance(slope, (int, float)) and slope > 0 else None
    if name == "gelu":
        kind = options.get("approximate", rest[0] if rest else "none")
        return Epilogue("gelu_tanh" if kind == "tanh" else "gelu") if kind in ("none", "tanh") else None
    return Epilogue(name) if name and not options else None


def is_activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is an activation, one that cannot be fused too."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module).__name__.lower() in _OTHERS or activation_of(module) is not None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_") in _OTHERS or epilogue_of(node, modules) is not None


def addends(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node adds, each once; ``None`` for everything else.

    The second is never written to by the addition.
    """
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS or node.kwargs:
        return None
    if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
        return None
    first, second = node.args
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def writes(node: fx.Node, tensor: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node writes into one of its arguments."""
    if tensor not in node.all_input_nodes:
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or node.target in (operator.iadd, operator.imul, operator.isub) or bool(node.kwargs.get("inplace"))


def writes_to_the_first(node: fx.Node) -> bool:
    """Whether an addition stores its result in its first tensor."""
    return node.target in _WRITES_TO_THE_FIRST

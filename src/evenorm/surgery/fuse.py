"""Fusing: which activations and additions follow a normalizer, and the rewritten forwards that do both at once.

From the innermost modules outwards, so that a fusion lies in the smallest module that contains all of it. A
module that ends with a normalizer is opened when the one around it is traced: what follows stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx, nn

from evenorm.epilogue import Epilogue
from evenorm.layers import Layer
from evenorm.surgery.left import why_alone
from evenorm.surgery.patterns import addends, epilogue_of, writes, writes_to_the_first
from evenorm.surgery.proof import Inputs, Proof, ProofError, observe, prove, widened
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.rewrite import Code, Forward, fused, is_hooked, rewrite
from evenorm.surgery.snapshot import atomic, untouched
from evenorm.surgery.trace import Arguments, Trace, TraceError, trace

__all__ = ["fuse"]


@dataclass(frozen=True)
class _Fusion:
    """A normalizer's node, and those that go with it."""

    layer: fx.Node
    added: fx.Node | None
    residual: fx.Node | None
    activated: fx.Node | None
    epilogue: Epilogue

    @property
    def last(self) -> fx.Node:
        found = self.activated or self.added
        assert found is not None
        return found

    @property
    def paths(self) -> list[str]:
        """The modules in it."""
        return [str(n.target) for n in (self.layer, self.activated) if n is not None and n.op == "call_module"]


@dataclass
class _Found:
    """What has been found out on the way outwards."""

    opened: dict[nn.Module, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    """Modules that end with a normalizer, and the shapes that they were called with."""
    done: dict[Layer, _Fusion] = field(default_factory=dict)
    left: dict[Layer, tuple[str, str, str]] = field(default_factory=dict)
    """Normalizers that stay alone: path, name of the module around them, reason."""


def fuse(model: nn.Module, inputs: Inputs | None, report: SurgeryReport) -> None:
    """Fuse all that can be: without inputs activation modules alone, with inputs functions and residuals, proved."""
    names: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        names.setdefault(module, path)
    calls = {} if inputs is None else _calls(model, inputs)
    found = _Found()
    for module in _innermost_first(model):
        if isinstance(module, (Layer, nn.ModuleList, nn.ModuleDict)):
            continue
        if not any(isinstance(child, Layer) or child in found.opened for child in _inside(module)):
            continue
        if inputs is not None and module not in calls:
            report.refuse(names[module], type(module).__name__, "the example inputs do not reach it")
            continue
        try:
            _fuse_module(module, names[module], calls.get(module), found, report)
        except TraceError as fault:
            report.refuse(names[module], type(module).__name__, f"its own code stays: {fault}")
    for layer, (path, kind, reason) in found.left.items():
        if layer not in found.done:
            report.refuse(path, kind, reason)


def _innermost_first(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    seen = set() if seen is None else seen
    if module not in seen:
        seen.add(module)
        for child in module.children():
            yield from _innermost_first(child, seen)
        yield module


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """The children, those in lists too."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _inside(child)
        else:
            yield child


def _calls(model: nn.Module, inputs: Inputs) -> dict[nn.Module, Inputs]:
    """The first call of each module that has a layer of ours somewhere inside."""
    found: dict[nn.Module, Inputs] = {}

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if module not in found:
            found[module] = Inputs(*Inputs(args, kwargs).copied())

    with untouched(model):
        for module in model.modules():
            if not isinstance(module, Layer) and any(isinstance(m, Layer) for m in module.modules()):
                module.register_forward_pre_hook(note, with_kwargs=True)
        inputs(model.eval())
    return found


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.train(training)
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def _fuse_module(module: nn.Module, path: str, inputs: Inputs | None, found: _Found, report: SurgeryReport) -> None:
    arguments = Arguments.of(module, inputs)
    name = type(module).__name__
    codes: dict[bool, Code] = {}
    new: dict[Layer, _Fusion] = {}
    for training in (True, False):
        with _mode(module, training):
            flow = trace(module, arguments, found.opened, found.opened)
            fusions, modules = _find(flow, module, everything=inputs is not None)
            fresh = [f for f in fusions if modules[f.paths[0]] not in found.done]
            if inputs is not None:
                _note_left(flow, fusions, modules, path, name, found)
            if fresh:
                needed = {m: found.opened[m] for f in fresh for p in _above(f) if (m := modules[p]) in found.opened}
                if needed.keys() != set(flow.inlined[1:]):
                    flow = trace(module, arguments, needed, needed)
                    fusions, modules = _find(flow, module, everything=inputs is not None)
                new |= {layer: f for f in fusions if (layer := modules[f.paths[0]]) not in found.done}  # type: ignore[misc]
                codes[training] = _code(flow, fusions, modules)
            elif training and _ends_with_layer(flow, modules) and not is_hooked(module):
                found.opened[module] = arguments.shapes
    if not codes:
        return
    proof = _install(module, Forward(module, arguments, codes), inputs)
    if proof is not None and not proof.holds:
        report.refuse(path, name, "the fused forward differs by more than rounding", proof)
        return
    found.done |= new
    for fusion in new.values():
        whole = ".".join(filter(None, (path, fusion.paths[0])))
        for node, work in ((fusion.added, "adds fused"), (fusion.activated, "activations fused")):
            if node is not None:
                what = "+ residual" if node is fusion.added else str(fusion.epilogue)
                report.did(whole, name, f"normalization, {what}", work, proof)


def _note_left(
    flow: Trace, fusions: list[_Fusion], modules: Mapping[str, nn.Module], path: str, name: str, found: _Found
) -> None:
    taken = {node for fusion in fusions for node in (fusion.added, fusion.activated) if node is not None}
    fused_here = {fusion.layer for fusion in fusions}
    for node in flow.graph.nodes:
        layer = modules[str(node.target)] if node.op == "call_module" else None
        reason = why_alone(node, modules, taken) if isinstance(layer, Layer) and node not in fused_here else None
        if reason is not None and isinstance(layer, Layer):
            found.left[layer] = (".".join(filter(None, (path, str(node.target)))), name, reason)


def _above(fusion: _Fusion) -> Iterator[str]:
    """The paths of the modules around those of a fusion."""
    for path in fusion.paths:
        parts = path.split(".")
        yield from (".".join(parts[:k]) for k in range(1, len(parts)))


def _install(module: nn.Module, forward: Forward, inputs: Inputs | None) -> Proof | None:
    """Rewrite a module, and prove it in the modes that have code; what is not proved is taken back."""
    if inputs is None:
        rewrite(module, forward)
        return None
    proof: Proof | None = None
    try:
        with atomic(module):
            before = {mode: observe(*widened(module, inputs), training=mode) for mode in forward.codes}
            rewrite(module, forward)
            for mode, old in before.items():
                found = prove(
                    old, observe(*widened(module, inputs), training=mode), *widened(module, inputs), training=mode
                )
                proof = found if proof is None or found.error > proof.error or not found.holds else proof
                if not found.holds:
                    raise ProofError(str(found))
    except ProofError:
        return proof
    return proof


def _find(flow: Trace, module: nn.Module, *, everything: bool) -> tuple[list[_Fusion], dict[str, nn.Module]]:
    """The fusions in a graph, in order; ``everything`` is functions and additions beside activation modules."""
    graph, modules = flow.graph, dict(module.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    found = [_match(node, modules, everything) for node in graph.nodes if _is_plain_layer(node, modules)]
    taken: set[fx.Node] = set()
    fusions: list[_Fusion] = []
    for fusion in reversed(found):
        # Where two normalizers are added, the later one takes the sum of the earlier.
        if fusion is not None and fusion.last not in taken and (fusion.added is None or fusion.added not in taken):
            fusions.insert(0, fusion)
            taken |= {n for n in (fusion.added, fusion.activated) if n is not None}
    return fusions, modules


def _is_plain_layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    layer = modules[str(node.target)]
    return isinstance(layer, Layer) and layer.epilogue == Epilogue() and not is_hooked(layer)


def _match(node: fx.Node, modules: dict[str, nn.Module], everything: bool) -> _Fusion | None:
    """What goes with a normalizer: an addition and an activation, or either."""
    follower = _only_user(node)
    if follower is None:
        return None
    epilogue = _activation(follower, modules, everything)
    if epilogue is not None:
        return _Fusion(node, None, None, follower, epilogue)
    pair = addends(follower) if everything else None
    if pair is None or not _may_wait(node, follower, modules):
        return None
    residual = pair[1] if pair[0] is node else pair[0]
    if writes_to_the_first(follower) and pair[0] is not node:
        return None
    after = _only_user(follower)
    epilogue = None if after is None else _activation(after, modules, everything)
    return _Fusion(node, follower, residual, after if epilogue else None, epilogue or Epilogue())


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _activation(node: fx.Node, modules: dict[str, nn.Module], everything: bool) -> Epilogue | None:
    if node.op == "call_module" and is_hooked(modules[str(node.target)]):
        return None
    return epilogue_of(node, modules) if everything or node.op == "call_module" else None


def _may_wait(node: fx.Node, until: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a normalizer may be called as late as an addition: nothing writes into its input, nor its history."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    between = node.next
    while between is not until:
        if writes(between, source, modules) or (between.op == "call_module" and between.target == node.target):
            return False
        between = between.next
    return True


def _ends_with_layer(flow: Trace, modules: Mapping[str, nn.Module]) -> bool:
    (last,) = (node for node in flow.graph.nodes if node.op == "output")
    result = last.args[0]
    return isinstance(result, fx.Node) and _is_plain_layer(result, modules) and len(result.users) == 1


def _code(flow: Trace, fusions: list[_Fusion], modules: Mapping[str, nn.Module]) -> Code:
    """The graph with each fusion as one call."""
    graph, skipped = flow.graph, list(flow.inlined)
    layers: list[Layer] = []
    for fusion in fusions:
        layer = modules[fusion.paths[0]]
        assert isinstance(layer, Layer)
        layers.append(layer)
        skipped += [modules[path] for path in fusion.paths[1:]]
        with graph.inserting_before(fusion.last):
            whole = graph.get_attr(str(fusion.layer.target))
            node = graph.call_function(fused, (whole, fusion.layer.args[0], fusion.residual, fusion.epilogue))  # type: ignore[arg-type]
        fusion.last.replace_all_uses_with(node)
        for old in (fusion.activated, fusion.added, fusion.layer):
            if old is not None:
                graph.erase_node(old)
    graph.lint()
    return Code(flow, skipped, layers)

"""Why a normalizer stays alone beside an activation or an addition that could go with it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from evenorm.surgery.patterns import addends, is_activation
from evenorm.surgery.rewrite import is_hooked

__all__ = ["why_alone"]


def why_alone(node: fx.Node, modules: Mapping[str, nn.Module], taken: set[fx.Node]) -> str | None:
    """The reason, for a normalizer that was not fused; ``None`` where nothing beside it could be.

    ``taken`` is what has been fused with others.
    """
    near = [user for user in node.users if user not in taken and (is_activation(user, modules) or addends(user))]
    if near:
        return _why_not_with(near[0], node, modules)
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and addends(source) is not None:
        return "the residual is added before it, and the sum goes on: a call of another form, which no rewriting makes"
    return None


def _why_not_with(user: fx.Node, node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    name = _name(user, modules)
    hooked = [n for n in (node, user) if n.op == "call_module" and is_hooked(modules[str(n.target)])]
    if hooked:
        return f"a hook hangs on {_name(hooked[0], modules)}"
    if len(node.users) > 1:
        return f"its output goes to {name} and elsewhere"
    if addends(user) is None:
        return f"{name} is none of the activations that go with a normalization"
    return f"its input, or what {name} adds to it, is written to in between"


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

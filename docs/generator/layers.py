"""A page for each layer: its pattern as a picture, its sizes, and its docstring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

import evenorm
from evenorm import Pattern
from evenorm.explain.drawing import spell_out
from evenorm.explain.sizing import layer_named
from evenorm.layers import Layer
from generator.block import Block

__all__ = ["index", "pages"]

# The input of each page's figures, and the smaller one of its picture.
_SHAPES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "BatchNorm1d": ((32, 64, 100), (4, 6, 4)),
    "BatchNorm2d": ((32, 64, 28, 28), (4, 6, 2, 2)),
    "BatchNorm3d": ((8, 32, 16, 28, 28), (4, 6, 1, 2, 2)),
    "GhostBatchNorm1d": ((32, 64, 100), (4, 6, 4)),
    "GhostBatchNorm2d": ((32, 64, 28, 28), (4, 6, 2, 2)),
    "GhostBatchNorm3d": ((8, 32, 16, 28, 28), (4, 6, 1, 2, 2)),
    "SyncBatchNorm": ((32, 64, 28, 28), (4, 6, 2, 2)),
    "LayerNorm": ((8, 128, 768), (4, 5, 6)),
    "RMSNorm": ((8, 128, 768), (4, 5, 6)),
    "LayerNorm2d": ((32, 96, 56, 56), (4, 6, 2, 2)),
    "RMSNorm2d": ((32, 96, 56, 56), (4, 6, 2, 2)),
    "GroupNorm": ((32, 64, 28, 28), (4, 6, 2, 2)),
    "InstanceNorm1d": ((32, 64, 100), (4, 6, 4)),
    "InstanceNorm2d": ((32, 64, 28, 28), (4, 6, 2, 2)),
    "InstanceNorm3d": ((8, 32, 16, 28, 28), (4, 6, 1, 2, 2)),
}
# Written out where the layer is no size of a pattern: what each shares, in a sentence.
_WEIGHTS = {
    "weight_norm": ("o [i]", "each row of a weight has a length of its own"),
    "spectral_norm": ("", "a whole weight is divided by its largest singular value; no pattern says that"),
}
_GROUPS, _CHUNK = {True: 2, False: 32}, {True: 2, False: 16}


@dataclass(frozen=True)
class _Sized:
    """A layer built for a shape."""

    layer: Layer
    shape: tuple[int, ...]

    @property
    def pattern(self) -> Pattern:
        """Its pattern with sizes that fit the shape."""
        return self.layer.recipe.pattern

    @staticmethod
    def of(name: str, shape: tuple[int, ...], *, small: bool) -> _Sized:
        """Build it; few groups and small chunks for a picture."""
        chunk = min(_CHUNK[small], max(shape[0] // 2, 1))
        return _Sized(layer_named(name, shape, groups=_GROUPS[small], virtual_batch_size=chunk), shape)


def pages() -> dict[str, str]:
    """Markdown by file name: an index and a page for each layer."""
    made = {f"layers/{name}.md": _page(name) for name in _SHAPES}
    made["layers/Norm.md"] = _norm()
    return made | {f"layers/{name}.md": _weight(name) for name in _WEIGHTS} | {"layers/index.md": index()}


def index() -> str:
    """A table of all layers with their patterns."""
    rows = []
    for name, (shape, _) in _SHAPES.items():
        found = evenorm.explain(_Sized.of(name, shape, small=False).layer, shape)
        text = _open(found.recipe.pattern)
        centered = "" if found.recipe.centered else ", not centered"
        rows.append(f"| [`{name}`]({name}.md) | `{text}`{centered} | {_on(found.recipe)} |")
    rows.append("| [`Norm`](Norm.md) | any | any |")
    rows += [f"| [`{name}`]({name}.md) | {about} | – |" for name, (_, about) in _WEIGHTS.items()]
    return "\n".join(
        [
            "# Layers",
            "",
            "Each takes torch's constructor arguments and loads torch's state dicts. Brackets mark the axes whose",
            "elements share one mean and one variance: [Patterns](../patterns.md) reads them out.",
            "",
            "| layer | pattern | weight and bias on |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _page(name: str) -> str:
    shape, small = _SHAPES[name]
    sized, drawn = _Sized.of(name, shape, small=False), _Sized.of(name, small, small=True)
    with torch.no_grad():
        found = evenorm.explain(sized.layer, shape)
    recipe = found.recipe
    share = "one mean and one variance" if recipe.centered else "one mean square"
    history = f"{found.history_bytes:,} bytes" if found.history_bytes else "none"
    spelled = spell_out(drawn.pattern, len(small))
    return "\n".join(
        [
            f"# {name}",
            "",
            Block(drawn.pattern, small).svg(),
            "",
            f"*The colored elements share {share}: `{spelled}` on a tensor of {_times(small)}.*",
            "",
            "| input | statistics | values for each | parameters | history |",
            "|---|---|---|---|---|",
            f"| {_times(shape)} | {found.statistics:,} | {found.values:,} | {found.parameters:,} | {history} |",
            "",
            f"`{sized.layer}`",
            "",
            f"::: evenorm.{name}",
            "    options:",
            "      heading: Arguments",
            "      members: false",
            "",
        ]
    )


def _norm() -> str:
    text, shape = "b t h [d]", (4, 3, 6, 4)
    return "\n".join(
        [
            "# Norm",
            "",
            "The layer for every pattern that has no layer of its own: queries and keys normalized per head, say.",
            "",
            Block(Pattern.parse("b h [d]"), (4, 6, 4)).svg(),
            "",
            f"*`{text}` on {_times(shape)}, of which b, h and d are drawn.*",
            "",
            "::: evenorm.Norm",
            "    options:",
            "      heading: Arguments",
            "      members: false",
            "",
            "## At the call",
            "",
            "Every layer is called so:",
            "",
            "::: evenorm.layers.Layer.forward",
            "",
        ]
    )


def _weight(name: str) -> str:
    text, about = _WEIGHTS[name]
    picture = [Block(Pattern.parse(text), (4, 6)).svg(), ""] if text else []
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{about[:1].upper()}{about[1:]}.",
            "",
            *picture,
            f"::: evenorm.{name}",
            "    options:",
            "      heading: Arguments",
            "",
        ]
    )


def _open(pattern: Pattern) -> str:
    """The pattern without sizes."""
    return re.sub(r"=\d+", "", pattern.text)


def _on(recipe: evenorm.Recipe) -> str:
    return f"`{' '.join(recipe.affine.axes)}`" if recipe.affine.axes else "–"


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{size:,}" for size in shape)

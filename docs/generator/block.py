"""The picture of a pattern: a block of the tensor, in which the elements that share one statistic are colored.

python docs/generator/block.py docs/images/normalizers.svg
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evenorm import Pattern
from evenorm.explain.drawing import spell_out

__all__ = ["PICTURED", "Block", "sheet"]

# One element's width, height and depth on the paper, in pixels.
_ACROSS, _DOWN, _TALL = 13.0, 7.5, 15.0

PICTURED = (
    ("BatchNorm", "[n] c [...]", (4, 6, 2, 2)),
    ("LayerNorm", "... [d]", (4, 6, 4)),
    ("LayerNorm2d", "n [c] h w", (4, 6, 2, 2)),
    ("GroupNorm", "n (g=2 [c]) [...]", (4, 6, 2, 2)),
    ("InstanceNorm", "n c [...]", (4, 6, 2, 2)),
    ("GhostBatchNorm", "(k=2 [n]) c [...]", (4, 6, 2, 2)),
)
"""The normalizers of the picture in the README, on small tensors."""

_STYLE = """
.edge{fill:none;stroke:#5b6472;stroke-width:.8}.name{fill:#1f2430;font-weight:600}.axis{fill:#5b6472}
.top{fill:#7aa7f7}.left{fill:#3f7bea}.right{fill:#2a5fc4}
text{font:13px system-ui,sans-serif}.pattern{fill:#2a5fc4;font:13px ui-monospace,monospace}
@media (prefers-color-scheme:dark){
.edge{stroke:#9aa4b2}.name{fill:#e6e9ef}.axis{fill:#9aa4b2}.pattern{fill:#8ab4ff}
}"""

Point = tuple[float, float]


def _on_paper(a: float, b: float, c: float) -> Point:
    """Where a corner of the block lies: the first axis to the right, the second to the left, the third down."""
    return (a - b) * _ACROSS, (a + b) * _DOWN + c * _TALL


@dataclass(frozen=True)
class Block:
    """A tensor of at most three axes (more are drawn as one), and the elements that share one statistic.

    >>> int(Block(Pattern.parse("[n] c [...]"), (2, 3, 4)).shared.sum())
    8
    """

    pattern: Pattern
    shape: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The three axes that are drawn; missing ones have one element."""
        first, second, *rest = (*self.shape, 1)
        return first, second, prod(rest)

    @property
    def names(self) -> tuple[str, str, str]:
        """Their names."""
        first, second, *rest = [str(axis).strip("[]") for axis in spell_out(self.pattern, len(self.shape)).axes] + [""]
        return _plain(first), _plain(second), "·".join(_plain(name) for name in rest if name)

    @property
    def shared(self) -> NDArray[np.bool_]:
        """Which elements share the statistic of the corner in front."""
        binding = self.pattern.bind(self.shape)
        statistic = np.arange(prod(binding.statistics_shape)).reshape(binding.keepdim_shape)
        owner = np.broadcast_to(statistic, binding.shape).reshape(self.sizes)
        shared: NDArray[np.bool_] = owner == owner[-1, -1, 0]
        return shared

    def faces(self) -> Iterator[str]:
        """The visible faces of the colored elements, from the back to the front."""
        shared = np.pad(self.shared, 1)
        first, second, third = self.sizes
        order = [(a, b, c) for a in range(first) for b in range(second) for c in reversed(range(third))]
        for a, b, c in sorted(order, key=lambda place: (place[0] + place[1], -place[2])):
            if not shared[a + 1, b + 1, c + 1]:
                continue
            if not shared[a + 1, b + 1, c]:
                yield _polygon("top", (a, b, c), (a + 1, b, c), (a + 1, b + 1, c), (a, b + 1, c))
            if not shared[a + 1, b + 2, c + 1]:
                yield _polygon("left", (a, b + 1, c), (a + 1, b + 1, c), (a + 1, b + 1, c + 1), (a, b + 1, c + 1))
            if not shared[a + 2, b + 1, c + 1]:
                yield _polygon("right", (a + 1, b, c), (a + 1, b + 1, c), (a + 1, b + 1, c + 1), (a + 1, b, c + 1))

    def edges(self) -> str:
        """The lines between elements on the three faces of the block that are turned to the reader."""
        first, second, third = self.sizes
        lines = [
            *([(a, 0, 0), (a, second, 0), (a, second, third)] for a in range(first + 1)),
            *([(0, b, 0), (first, b, 0), (first, b, third)] for b in range(second + 1)),
            *([(0, second, c), (first, second, c), (first, 0, c)] for c in range(1, third + 1)),
        ]
        return f'<path class="edge" d="{"".join(map(_path, lines))}"/>'

    def labels(self) -> Iterator[str]:
        """The axes' names beside the edges at the bottom and at the left."""
        first, second, third = self.sizes
        one, two, three = self.names
        x, y = _on_paper(first / 2, second, third)
        yield _text("axis", x - 8, y + 18, one, "end")
        x, y = _on_paper(first, second / 2, third)
        yield _text("axis", x + 8, y + 18, two)
        if three:
            x, y = _on_paper(0, second, third / 2)
            yield _text("axis", x - 8, y + 4, three, "end")

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the drawing with its labels."""
        first, second, third = self.sizes
        left, right = _on_paper(0, second, 0)[0] - 12 - 8 * len(self.names[2]), _on_paper(first, 0, 0)[0] + 16
        return left, -8.0, right - left, _on_paper(first, second, third)[1] + 34

    def drawn(self) -> str:
        """The block as elements of a picture."""
        return "".join((*self.faces(), self.edges(), *self.labels()))

    def svg(self) -> str:
        """The block as a picture within a page, which colors it."""
        left, top, width, height = self.frame
        said = f"{self.pattern} on a tensor of shape {self.shape}: {int(self.shared.sum())} elements share a statistic"
        return (
            f'<svg class="block" role="img" aria-label="{html.escape(said)}" viewBox="{left:g} {top:g} {width:g} '
            f'{height:g}" width="{width:g}" height="{height:g}">{self.drawn()}</svg>'
        )


def sheet(pictured: Sequence[tuple[str, str, tuple[int, ...]]] = PICTURED, columns: int = 3) -> str:
    """Blocks side by side with name and pattern, as a file of its own for light and dark pages."""
    across, down = 230, 208
    parts = []
    for place, (name, text, shape) in enumerate(pictured):
        block = Block(Pattern.parse(text), shape)
        left, top, width, _ = block.frame
        x, y = place % columns * across, place // columns * down
        shown = re.sub(r"=\d+", "", text)
        parts.append(
            f'<g transform="translate({x + across / 2:g} {y})">{_text("name", 0, 20, name, "middle")}'
            f"{_text('pattern', 0, 40, shown, 'middle')}"
            f'<g transform="translate({-left - width / 2:g} {56 - top:g})">{block.drawn()}</g></g>'
        )
    height = down * -(-len(pictured) // columns)
    said = "Six normalizers: which elements of a tensor share one mean and one variance"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{said}" viewBox="0 0 {across * columns} '
        f'{height}" width="{across * columns}" height="{height}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _plain(axis: str) -> str:
    """An axis's name without brackets and sizes: ``(k=2 [n])`` is ``k·n``."""
    return "·".join(re.findall(r"[A-Za-z_]\w*", axis))


def _polygon(face: str, *corners: tuple[float, float, float]) -> str:
    points = " ".join(f"{x:g},{y:g}" for x, y in (_on_paper(*corner) for corner in corners))
    return f'<polygon class="{face}" points="{points}"/>'


def _path(line: Sequence[tuple[float, float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in (_on_paper(*corner) for corner in line))


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(sheet(), encoding="utf-8")

"""The drawing: a tensor as a few cells of text, in which equal letters share one mean and one variance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby, repeat
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

from evenorm.pattern import Axis, Factor, Pattern

__all__ = ["CHOSEN", "Drawing", "Part", "spell_out"]

CHOSEN = "■"

# What the axes after sample and channel are called.
_POSITIONS = {1: ("l",), 2: ("h", "w"), 3: ("d", "h", "w")}


class Part(NamedTuple):
    """Neighboring axes of one kind, as one."""

    name: str
    size: int
    reduced: bool

    def __str__(self) -> str:
        return f"{self.name} {self.size:,} {'reduced' if self.reduced else 'kept'}"


Edge = tuple[Part, ...]

Tick = tuple[int | None, ...]
"""A place along an edge: one index for each of its parts, the last ``None`` where places are left out."""


def spell_out(pattern: Pattern, rank: int) -> Pattern:
    """The pattern with a name for each axis that the ellipsis stands for.

    >>> print(spell_out(Pattern.parse("[n] c [...]"), 4))
    [n] c [h w]
    >>> print(spell_out(Pattern.parse("... [d]"), 3))
    i j [d]
    """
    first = next((i for i, axis in enumerate(pattern.axes) if axis.is_ellipsis), None)
    if first is None:
        return pattern
    length = rank - len(pattern.axes) + 1
    last_of_many = first == 2 and first + 1 == len(pattern.axes)
    names = _POSITIONS.get(length, ()) if last_of_many else ()
    if not names or set(names) & set(pattern.names):
        letters = chain("ijkpqr", (f"i{k}" for k in count()))
        free = (name for name in letters if name not in pattern.names)
        names = tuple(next(free) for _ in range(length))
    reduced = pattern.axes[first].factors[0].reduced
    spelled = tuple(Axis((Factor(name, reduced),)) for name in names)
    return Pattern(pattern.axes[:first] + spelled + pattern.axes[first + 1 :])


@dataclass(frozen=True)
class Drawing:
    """A tensor as blocks of rows and columns: a few of each, ``…`` for the rest.

    The cells that share the first one's statistic are ``■``; every other statistic has a letter.

    >>> print(Drawing.of(Pattern.parse("n (g=2 [c]) [...]"), (2, 4, 3)))
              n 0     n 1
    g 0  c 0  ■ ■ ■   A A A
         c 1  ■ ■ ■   A A A
    g 1  c 0  B B B   C C C
         c 1  B B B   C C C
    """

    blocks: Edge
    rows: Edge
    columns: Edge
    width: int = 80

    @staticmethod
    def of(pattern: Pattern, shape: Sequence[int], width: int = 80) -> Drawing:
        """Draw a pattern on a shape, within a width."""
        binding = spell_out(pattern, len(shape)).bind(shape)
        parts = [
            (axis, Part(name, size, i in binding.reduced))
            for i, (axis, name, size) in enumerate(zip(binding.axes, binding.names, binding.shape, strict=True))
        ]
        edges = [_joined(part for _, part in group) for _, group in groupby(parts, key=lambda pair: pair[0])]
        # Columns have no room for labels, so an axis that is split does not lie along them.
        edges[-1:] = [(part,) for part in edges[-1]] if edges else []
        while len(edges) > 3:
            seam = _seam(edges)
            edges[seam : seam + 2] = [_joined(edges[seam] + edges[seam + 1])]
        blocks, rows, columns = [()] * (3 - len(edges)) + edges
        return Drawing(blocks, rows, columns, width)

    @property
    def axes(self) -> Edge:
        """What is drawn, outermost first."""
        return self.blocks + self.rows + self.columns

    @property
    def caption(self) -> str:
        """Which axes lie in which direction."""
        edges = {"block": self.blocks, "row": self.rows, "column": self.columns}
        named = [f"one {each} per {' and '.join(part.name for part in edge)}" for each, edge in edges.items() if edge]
        return f"There is {', '.join(named)}." if named else ""

    def __str__(self) -> str:
        if not all(part.size for part in self.axes):
            return "(an empty tensor: there is nothing to draw)"
        blocks, rows = _ticks(self.blocks, 4), _ticks(self.rows, 4)
        # The more blocks, the narrower.
        columns = _ticks(self.columns, {1: 8, 2: 6}.get(len(blocks), 4 if len(blocks) < 6 else 2))
        letters = _Letters(self.axes)
        table = [
            ["…" if None in b else "⋮" if None in r else letters.row(b + r, columns) for b in blocks] for r in rows
        ]
        heads = [list(line) for line in zip(*_labels(self.blocks, blocks, "…"), strict=True)]
        labels = _aligned(_labels(self.rows, rows, "⋮"), "  ")
        indent = max(map(len, labels))
        labels = [" " * indent] * len(heads) + [label.ljust(indent) for label in labels]
        bands = []
        for band in _bands(heads + table, self.width - indent - 2):
            lines = (f"{label}  {cells}".rstrip() for label, cells in zip(labels, band, strict=True))
            bands.append("\n".join(line for line in lines if line))
        return "\n\n".join(bands)


def _joined(parts: Iterable[Part]) -> Edge:
    """Neighbors of one kind as one part."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].reduced == part.reduced:
            name, size, _ = joined.pop()
            part = Part(f"{name}·{part.name}", size * part.size, part.reduced)
        joined.append(part)
    return tuple(joined)


def _seam(edges: Sequence[Edge]) -> int:
    """Where to join two edges: reduced positions first, then leading kept axes, then any."""
    alike = [i for i in range(len(edges) - 1) if len(_joined(edges[i] + edges[i + 1])) == 1]
    reduced = [i for i in alike if edges[i][0].reduced]
    return reduced[-1] if reduced else alike[0] if alike else 0


def _ticks(edge: Edge, most: int) -> list[Tick]:
    """The places to show: ``most`` of a part that stands alone, fewer of each part of a split axis."""
    ticks: list[Tick] = [()]
    for depth, part in enumerate(edge):
        few = most if len(edge) == 1 else 3 if depth == 0 else 2
        # What is left out takes the room of one.
        all_of = few if depth + 1 < len(edge) else few + 1
        sample = [*range(part.size)] if part.size <= all_of else [*range(few - 1), None, part.size - 1]
        ticks = [longer for t in ticks for longer in ([t] if None in t else [(*t, i) for i in sample])]
    return ticks


class _Letters:
    """A letter for each statistic, in the order in which they are met."""

    def __init__(self, axes: Edge) -> None:
        self.axes = axes
        self.unused = chain(CHOSEN, ascii_uppercase, ascii_lowercase, repeat("·"))
        self.given: dict[Tick, str] = {}

    def row(self, place: Tick, columns: Iterable[Tick]) -> str:
        """One row of a block."""
        return " ".join("…" if None in column else self.of(place + column) for column in columns)

    def of(self, cell: Tick) -> str:
        """The letter of a cell's statistic."""
        kept = tuple(i for i, part in zip(cell, self.axes, strict=True) if not part.reduced)
        return self.given.get(kept) or self.given.setdefault(kept, next(self.unused))


def _labels(edge: Edge, ticks: Iterable[Tick], left_out: str) -> Iterator[list[str]]:
    """A label for each part of each tick; none where it repeats."""
    before: Tick = ()
    for tick in ticks:
        labels = [""] * len(edge)
        for k, i in enumerate(tick):
            if before[: k + 1] != tick[: k + 1]:
                labels[k] = left_out if i is None else f"{edge[k].name} {i:,}"
        before = tick
        yield labels


def _aligned(table: Iterable[Sequence[str]], gap: str) -> list[str]:
    """The rows of a table as lines."""
    table = list(table)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [gap.join(map(str.ljust, row, widths)) for row in table]


def _bands(table: list[list[str]], width: int) -> Iterator[list[str]]:
    """The table as lines, cut between columns into bands that fit the width."""
    columns = [*zip(*table, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    start = 0
    while start < len(columns):
        stop = start + 1
        while stop < len(columns) and sum(widths[start : stop + 1]) + 3 * (stop - start) <= width:
            stop += 1
        yield _aligned(zip(*columns[start:stop], strict=True), "   ")
        start = stop

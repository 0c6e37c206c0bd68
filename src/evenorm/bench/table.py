"""A table of a run: what it states beside its rows, before a terminal or a page draws it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Table", "times"]


class Table(NamedTuple):
    """A title, a sentence that says how to read it, headings and cells. The first column names the line."""

    title: str
    note: str
    heads: tuple[str, ...]
    lines: list[tuple[str, ...]]

    @property
    def markdown(self) -> str:
        """As a page of the documentation shows it, without its title."""
        rows = [self.heads, ("---",) * len(self.heads), *self.lines]
        return "\n".join([self.note, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def times(ratio: float | None) -> str:
    """A ratio in at most five characters.

    >>> [times(r) for r in (0.984, 1.5, 24.19, 1234.0, None)]
    ['0.98×', '1.50×', '24.2×', '1234×', '–']
    """
    if ratio is None:
        return "–"
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"

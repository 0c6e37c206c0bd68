"""The comparison with other libraries, from docs/comparison.toml, where every cell has its source."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

if sys.version_info < (3, 11):
    import tomli as tomllib
else:
    import tomllib

__all__ = ["LIBRARIES", "ComparisonError", "page"]

LIBRARIES = {
    "evenorm": "evenorm",
    "torch": "torch.nn",
    "timm": "timm",
    "apex": "apex",
    "keras": "Keras",
    "flax": "Flax",
}


class ComparisonError(ValueError):
    """A cell without a text or without a source."""


def page(file: Path) -> str:
    """The page; its cells' sources are numbered notes below the table.

    Raises:
        ComparisonError: a cell is missing, or names no source.
    """
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    notes: dict[str, int] = {}
    rows = [_row(row, content["sources"], notes) for row in content["row"]]
    head = ["", *LIBRARIES.values()]
    sources = [f"{number}. [{_title(source)}]({source})" for source, number in notes.items()]
    return "\n".join(
        [
            "---\nhide: [navigation, toc]\n---",
            "",
            "# Comparison",
            "",
            content["about"].strip(),
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *rows,
            "",
            "## Sources",
            "",
            *sources,
            "",
        ]
    )


def _row(row: Mapping[str, object], sources: Mapping[str, str], notes: dict[str, int]) -> str:
    cells = [f"**{row['what']}**"]
    for key in LIBRARIES:
        match row.get(key):
            case [str(text), str(source)] if text and source in sources:
                address = sources[source]
                number = notes.setdefault(address, len(notes) + 1)
                cells.append(f"{text} [[{number}]]({address})")
            case other:
                raise ComparisonError(
                    f"{row['what']!r}, {LIBRARIES[key]}: expected a text and its source, got {other!r}"
                )
    return f"| {' | '.join(cells)} |"


def _title(source: str) -> str:
    """An address as it is; a page of ours by its name."""
    return source if "://" in source else f"evenorm: {Path(source).with_suffix('').as_posix()}"

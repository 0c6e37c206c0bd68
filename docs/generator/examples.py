"""The page of the examples: each file's own words, and its code."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["page"]

_HEAD = """# Examples

Each runs on a CPU. `make examples` runs all of them in a small form, with the packages that they name.
"""


def page(folder: Path) -> str:
    """One section for each file."""
    return "\n".join([_HEAD, *(_section(file) for file in sorted(folder.glob("*.py")))])


def _section(file: Path) -> str:
    source = file.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source)) or ""
    code = source.partition('"""\n\n')[2]
    return f'## {file.stem}\n\n{said}\n\n```python title="examples/{file.name}"\n{code.strip()}\n```\n'

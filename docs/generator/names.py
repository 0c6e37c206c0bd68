"""Which public names the pages document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pkgutil import resolve_name

import evenorm

__all__ = ["documented", "faults"]

_DIRECTIVE = re.compile(r"^::: ([\w.]+)", re.MULTILINE)


def documented(pages: Iterable[str]) -> list[str]:
    """Everything that the pages document, by its dotted name.

    >>> documented(["::: evenorm.Norm"])
    ['evenorm.Norm']
    """
    return [name for page in pages for name in _DIRECTIVE.findall(page)]


def faults(pages: Iterable[str]) -> list[str]:
    """What is public and on no page, what is on two, and what does not exist."""
    found: dict[str, int] = {}
    complaints = []
    for path in documented(pages):
        name = path.rpartition(".")[2]
        try:
            same = resolve_name(path) is getattr(evenorm, name, None)
        except (AttributeError, ImportError):
            complaints.append(f"{path} does not exist")
            continue
        if same:
            found[name] = found.get(name, 0) + 1
    complaints += [f"evenorm.{name} is on no page" for name in evenorm.__all__ if name not in found]
    return complaints + [f"evenorm.{name} is on {count} pages" for name, count in found.items() if count > 1]

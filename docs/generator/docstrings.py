"""Docstrings as Markdown: formulas, references and doctests in the site's own form."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Prose", "markdown"]

_FORMULA = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +.+)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 .*)*", re.MULTILINE)
# Names whose module has the same name, under which they are documented.
_ELSEWHERE = {"explain": "evenorm.explain.explain", "lockstep": "evenorm.statistics.lockstep.lockstep"}


def markdown(text: str, public: frozenset[str]) -> str:
    """A docstring with formulas between dollars, links to public names, and doctests as blocks of code.

    >>> print(markdown("As :class:`Norm`.", frozenset({"Norm"})))
    As [`Norm`][evenorm.Norm].
    """

    def formula(found: re.Match[str]) -> str:
        lines = (line.strip() for line in found[2].splitlines())
        return f"{found[1]}$$\n{found[1]}{' '.join(lines)}\n{found[1]}$$"

    def role(found: re.Match[str]) -> str:
        name = found[1].removeprefix("evenorm.")
        target = _ELSEWHERE.get(name, f"evenorm.{name}")
        return f"[`{name}`][{target}]" if name in public else f"`{found[1]}`"

    def doctest(found: re.Match[str]) -> str:
        return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"

    return _DOCTEST.sub(doctest, _ROLE.sub(role, _FORMULA.sub(formula, text)))


class Prose(griffe.Extension):  # type: ignore[misc]
    """Hands every docstring to :func:`markdown` before it is read."""

    def on_package(self, *, pkg: griffe.Module, **given: Any) -> None:
        """Change the docstrings of a package that was loaded."""
        exported = pkg["__all__"].value if "__all__" in pkg.members else None
        names = frozenset(re.findall(r"\w+", str(exported)))
        _rewrite(pkg, names)


def _rewrite(thing: griffe.Object, names: frozenset[str]) -> None:
    if thing.docstring is not None:
        thing.docstring.value = markdown(thing.docstring.value, names)
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member, names)

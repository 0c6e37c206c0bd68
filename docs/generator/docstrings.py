"""Docstrings as Markdown: formulas, references and doctests in the site's own form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import griffe

__all__ = ["Prose", "completed", "markdown"]

_FORMULA = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +.+)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 .*)*", re.MULTILINE)
_LIKE = re.compile(r"(?:see|as in) :class:`(\w+)`")
_SECTION = re.compile(r"^(Args|Shape|Raises|Source):\n(?: +.*\n?|\n(?= ))+", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> ", re.MULTILINE)
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


def completed(name: str, texts: Mapping[str, str]) -> str:
    """A layer's docstring with formula, arguments and source of the layer of another dimension that it refers to."""
    text = texts[name]
    like = next((other for other in _LIKE.findall(text) if _family(other) == _family(name)), None)
    if like is None:
        return text
    head, sections, example = _parts(text)
    _, others, _ = _parts(texts[like])
    formula = _FORMULA.search(texts[like])
    if formula is not None and ".. math::" not in head:
        head += f"\n\n{formula[0]}"
    sections = {
        "Args": others.get("Args", ""),
        "Shape": "",
        "Raises": "",
        "Source": others.get("Source", ""),
    } | sections
    return "\n\n".join(part for part in (head, *sections.values(), example) if part)


def _parts(text: str) -> tuple[str, dict[str, str], str]:
    """What comes before sections and examples, the sections by name, the examples."""
    found = _EXAMPLE.search(text)
    before, example = (text, "") if found is None else (text[: found.start()], text[found.start() :])
    sections = {section[1]: section[0].strip() for section in _SECTION.finditer(before)}
    return _SECTION.sub("", before).strip(), sections, example.strip()


def _family(name: str) -> str:
    return re.sub(r"[123]d$", "", name)


class Prose(griffe.Extension):  # type: ignore[misc]
    """Hands every docstring to :func:`completed` and :func:`markdown` before it is read."""

    def on_package(self, *, pkg: griffe.Module, **given: Any) -> None:
        """Change the docstrings of a package that was loaded."""
        exported = pkg["__all__"].value if "__all__" in pkg.members else None
        names = frozenset(re.findall(r"\w+", str(exported)))
        things = list(_documented(pkg))
        classes = {thing.name: thing.docstring.value for thing in things if isinstance(thing, griffe.Class)}
        for thing in things:
            text = completed(thing.name, classes) if isinstance(thing, griffe.Class) else thing.docstring.value
            thing.docstring.value = markdown(text, names)


def _documented(thing: griffe.Object) -> Iterator[Any]:
    if thing.docstring is not None:
        yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _documented(member)

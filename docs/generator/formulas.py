"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

__all__ = ["drawn"]

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def drawn(page: str) -> str:
    """A page of HTML with its formulas drawn."""
    return _FORMULA.sub(_drawn, page)


def _drawn(found: re.Match[str]) -> str:
    element, opening, formula = found.groups()
    display = "block" if opening == "[" else "inline"
    return f'<{element} class="formula">{convert(html.unescape(formula).strip(), display=display)}</{element}>'

"""What hand-written pages leave to be put in: figures of the lab, pictures of patterns.

``{{ evidence: batch-size 2 }}`` is the second claim of an experiment, ``{{ block: [n] c [...] | 4,6,4 }}`` a picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from evenorm import Pattern
from generator.block import Block
from generator.evidence import EvidenceError, read

__all__ = ["filled"]

_MACRO = re.compile(r"\{\{ (\w+): (.+?) \}\}")
_EVIDENCE = Path(__file__).parent.parent / "evidence.md"


def filled(page: str) -> str:
    """A page with everything put in.

    Raises:
        EvidenceError: it cites an experiment or a claim that the lab does not have.
        KeyError: there is no such macro.
    """
    return _MACRO.sub(lambda found: _MACROS[found[1]](found[2]), page)


def _evidence(words: str) -> str:
    slug, _, place = words.partition(" ")
    found = _claims().get((slug, int(place or 1)))
    if found is None:
        raise EvidenceError(f"the evidence has no claim {place or 1} of {slug!r}")
    return str(found)


def _block(words: str) -> str:
    text, _, shape = words.partition(" | ")
    return Block(Pattern.parse(text), tuple(int(size) for size in shape.split(","))).svg()


@cache
def _claims() -> Mapping[tuple[str, int], object]:
    return read(_EVIDENCE)


_MACROS: Mapping[str, Callable[[str], str]] = {"evidence": _evidence, "block": _block}

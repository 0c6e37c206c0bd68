"""What the lab measured, read from docs/evidence.md, for the pages that cite it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cited", "EvidenceError", "read"]

_CLAIM = re.compile(r"^- \*\*(?P<verdict>[^*]+)\*\*: (?P<claim>.+?) \(.+\)\n  (?P<measured>.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| (?P<slug>[\w-]+) \|.*\| (?P<seeds>\d+), (?P<scale>\w+) \| [^|]+\|$", re.MULTILINE)
# After the effect's description stands the figure, before the rule.
_FIGURE = re.compile(r": (?P<figure>[^:]*?)\. Holds where")
_NONE = "no seed has finished"


class EvidenceError(ValueError):
    """A page cites what the lab has not."""


@dataclass(frozen=True)
class Cited:
    """One claim's verdict and figure."""

    slug: str
    claim: str
    verdict: str
    figure: str
    seeds: int
    scale: str

    def __str__(self) -> str:
        link = f"[{self.slug}](evidence.md#{self.slug})"
        if _NONE in self.figure:
            return f"not measured yet ({link})"
        claim = self.claim.rstrip(".")
        return f"*{claim}:* **{self.verdict}**, {self.figure}, {self.seeds} seeds, {self.scale} ({link})"


def read(file: Path) -> dict[tuple[str, int], Cited]:
    """Every claim by its experiment and its place there, the first being 1."""
    text = file.read_text(encoding="utf-8")
    runs = {row["slug"]: (int(row["seeds"]), row["scale"]) for row in _ROW.finditer(text)}
    cited = {}
    for section in text.split("\n## ")[1:]:
        slug = section.split("\n", 1)[0].strip()
        if slug not in runs:
            raise EvidenceError(f"{file.name}: the section {slug!r} has no row in the table at the top")
        for place, claim in enumerate(_CLAIM.finditer(section), start=1):
            figure = _FIGURE.search(claim["measured"])
            if figure is None:
                raise EvidenceError(f"{file.name}: claim {place} of {slug!r} names no figure: {claim['measured']}")
            cited[slug, place] = Cited(slug, claim["claim"], claim["verdict"], figure["figure"], *runs[slug])
    return cited

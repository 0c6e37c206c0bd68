"""Everything that a comparison measured, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from evenorm.lab.comparison.compare import RATES, Comparison
from evenorm.lab.store import plain


def record(comparison: Comparison, sentences: Sequence[str]) -> str:
    """Return a comparison as JSON: protocol, every curve of every seed, and the conclusion.

    What is not a finite number (a loss that diverged) is null.
    """
    images = comparison.images
    content = {
        "data": {"name": images.name, "origin": images.origin, "classes": images.classes},
        "protocol": asdict(comparison.protocol),
        "rates": RATES,
        "runs": {"finished": comparison.finished, "of": comparison.total},
        "failures": comparison.failures,
        "rows": [asdict(row) for row in comparison.rows],
        "conclusion": list(sentences),
    }
    return json.dumps(plain(content), indent=1, allow_nan=False)

"""Everything that a comparison measured, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evenorm.lab.compare import RATES, Comparison


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
    return json.dumps(finite(content), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a structure with every infinite or undefined number replaced by none.

    >>> finite({"losses": [1.0, float("inf")]})
    {'losses': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

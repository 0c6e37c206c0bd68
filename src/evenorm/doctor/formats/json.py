"""An examination for programs."""

from __future__ import annotations

import json
from typing import Any

from evenorm.doctor.examination import Examination

__all__ = ["document", "plain", "text"]


def document(examination: Examination) -> str:
    """``to_dict()`` as JSON; numbers that JSON lacks become text."""
    return text(examination.to_dict())


def text(value: Any) -> str:
    """Plain values as JSON."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A value of numbers, texts, lists and dicts alone."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)

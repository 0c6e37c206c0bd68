"""What the doctor says: a symptom that a rule saw, and the finding that it becomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

__all__ = ["SEVERITIES", "Finding", "Fix", "Place", "Severity", "Symptom", "counted"]

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "batch norm"), counted(2, "pass", "passes")
    ('1 batch norm', '2 passes')
    """
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


@dataclass(frozen=True)
class Fix:
    """A change of the model that heals, and the line of Python that makes it."""

    call: str
    apply: Callable[[], object] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Symptom:
    """What a rule saw at one module.

    Attributes:
        path: of the module, as in ``named_modules``; empty for the model itself.
        message: what is wrong, with the measured figures.
        advice: what to do.
        evidence: the figures by name.
        fix: what heals it, where that is safe.
        severity: where it differs from the rule's.
    """

    path: str
    message: str
    advice: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Place:
    """Where a module's class is written."""

    file: str
    line: int

    @staticmethod
    def of(model: nn.Module, path: str) -> Place | None:
        """File and first line of a module's class; of torch's own classes, that of the nearest class around them."""
        parts = path.split(".") if path else []
        held = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
        # get_submodule refuses scripted models.
        known = dict(model.named_modules(remove_duplicate=False))
        modules = [known[name] for name in held if name in known]
        own = [module for module in modules if not type(module).__module__.startswith("torch.")]
        module = (own or modules)[0]
        try:
            file = inspect.getsourcefile(type(module))
            line = inspect.getsourcelines(type(module))[1]
        except (OSError, TypeError):
            return None
        return None if file is None else Place(file, max(line, 1))


@dataclass(frozen=True)
class Finding:
    """One fault of one module: what, where, how it was measured, what to do.

    ``file`` and ``line`` say where the module's class is written; ``None`` where there is no source.
    """

    code: str
    severity: Severity
    path: str
    message: str
    advice: str
    evidence: Mapping[str, Any]
    fix: Fix | None
    file: str | None
    line: int | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; of the fix its line of Python."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "fix"}
        return {**fields, "evidence": dict(self.evidence), "fix": self.fix.call if self.fix else None}

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: {self.severity} {self.code} {self.message}"

"""The result of an examination: findings, what they were found on, and how they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenorm.doctor.finding import SEVERITIES, Finding, Severity

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Examination"]


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        findings: errors first, then by path.
        notes: what could not be examined, and why.
        subject: the model in a few words.
        examined: codes of the rules that were asked.
        failure: why the model did not run its batch; ``None`` if it did, or if there was none.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    subject: str
    examined: tuple[str, ...]
    failure: str | None = None

    def __iter__(self) -> Iterator[Finding]:
        """The findings."""
        return iter(self.findings)

    def __len__(self) -> int:
        """Number of findings."""
        return len(self.findings)

    def __bool__(self) -> bool:
        """An examination is one, also without findings."""
        return True

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: no error, and the model ran if there was a batch."""
        return not self.of("error") and self.failure is None

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes found, each once."""
        return tuple(dict.fromkeys(finding.code for finding in self.findings))

    def fix(self) -> tuple[Finding, ...]:
        """Make every safe fix on the model; returns the findings that were healed."""
        healed = []
        for finding in self.findings:
            if finding.fix is not None:
                finding.fix.apply()
                healed.append(finding)
        return tuple(healed)

    def summary(self) -> str:
        """One line: how many of each severity."""
        counts = Counter(finding.severity for finding in self.findings)
        parts = [f"{counts[s]} {s if s == 'info' else s + 's' * (counts[s] != 1)}" for s in SEVERITIES if counts[s]]
        return f"{self.subject}: {', '.join(parts) or 'nothing found'}"

    def __str__(self) -> str:
        lines = [f"{finding}\n    {finding.advice}" for finding in self.findings]
        return "\n".join([*lines, *self.notes, self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
            "failure": self.failure,
            "examined": list(self.examined),
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from evenorm.doctor.formats import text

        yield from text.lines(self)

    def _repr_html_(self) -> str:
        return self.html()

    def html(self) -> str:
        """A page of its own."""
        from evenorm.doctor.formats import html

        return html.document(self)

"""An examination as workflow commands, which GitHub shows beside the lines of a pull request."""

from __future__ import annotations

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding, Severity
from evenorm.doctor.formats.sarif import relative

__all__ = ["document"]

COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}


def document(examination: Examination) -> str:
    """One command per finding."""
    return "\n".join([*map(_command, examination), *(f"::notice::{_text(note)}" for note in examination.notes)])


def _command(finding: Finding) -> str:
    place = {} if finding.file is None else {"file": relative(finding.file), "line": str(finding.line)}
    properties = {**place, "title": f"{finding.code} {finding.path or '(model)'}"}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{COMMANDS[finding.severity]} {listed}::{_text(f'{finding.message}. {finding.advice}')}"


def _text(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _text(text).replace(":", "%3A").replace(",", "%2C")

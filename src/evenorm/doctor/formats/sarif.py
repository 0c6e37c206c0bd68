"""An examination as SARIF 2.1.0, which code hosts and editors read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding, Severity
from evenorm.doctor.formats.json import plain
from evenorm.doctor.rule import Rule, rules

__all__ = ["document"]

LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}


def document(examination: Examination) -> str:
    """One run with the rules that were asked and their results."""
    driver = {"name": "evenorm", "rules": [_rule(rule) for rule in rules() if rule.code in examination.examined]}
    run = {
        "tool": {"driver": driver},
        "results": [_result(finding) for finding in examination],
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [{"level": "note", "message": {"text": n}} for n in examination.notes],
            }
        ],
    }
    page = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(page, indent=2, ensure_ascii=False, allow_nan=False)


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.texts["Why it matters"]},
        "help": {"text": rule.texts["Instead"]},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding) -> dict[str, Any]:
    return {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.path or '(model)'}: {finding.message}. {finding.advice}"},
        "locations": list(_locations(finding)),
        "properties": plain(dict(finding.evidence)),
    }


def _locations(finding: Finding) -> Iterator[dict[str, Any]]:
    logical = {"logicalLocations": [{"fullyQualifiedName": finding.path or "(model)", "kind": "module"}]}
    if finding.file is None:
        yield logical
        return
    artifact = {"uri": relative(finding.file)}
    yield {"physicalLocation": {"artifactLocation": artifact, "region": {"startLine": finding.line}}, **logical}


def relative(file: str) -> str:
    """A file below the working directory by its path from there, another by its whole address."""
    path = Path(file)
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_uri()

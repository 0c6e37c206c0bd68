"""Results as Markdown and as JSON: every claim with its figure and its verdict."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from evenorm.lab.experiment import Finding, Result
from evenorm.lab.store import plain

HEADING = "| experiment | claim | effect [95 % interval] | seeds | verdict |\n|---|---|---|---|---|"


def markdown(results: Sequence[Result]) -> str:
    """Return the page ``docs/evidence.md``: one row for each experiment, then each one's claims and rules."""
    rows = "\n".join(row(result.experiment.slug, result, result.findings[0]) for result in results)
    sections = "\n".join(map(section, results))
    scale = results[0].setting.scale
    return f"""# The evidence

What the lab measured. Made by `evenorm lab report`; do not edit. Each experiment asks one question, and its first
claim decides its verdict by a rule that was written down before the run. A verdict speaks of the small networks and
the data named here, and of nothing else.

{HEADING}
{rows}

The interval is a 95 % bootstrap interval over seeds; with three seeds it is their range, and the verdict provisional.
Measured with torch {torch.__version__} on {platform.machine()}. Everything again:
`evenorm lab run --all --scale {scale}`.

{sections}"""


def row(slug: str, result: Result, finding: Finding) -> str:
    """Return one row of a table of claims."""
    cells = (slug, finding.claim.text, finding.text, f"{len(finding.values)}, {result.setting.scale}", finding.verdict)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def section(result: Result) -> str:
    """Return what one experiment asks, does, found, and what would change it."""
    experiment = result.experiment
    claims = "\n".join(claim(finding) for finding in result.findings)
    failed = "".join(f"Seed {seed} failed: {reason}\n\n" for seed, reason in sorted(result.failures.items()))
    return f"""## {experiment.slug}

{experiment.question}

{experiment.protocol}

{claims}

{failed}What would change it: {experiment.changes}

`{command(result)}`
"""


def claim(finding: Finding) -> str:
    """Return one claim with its source, its rule, its figure and its verdict."""
    about = finding.claim
    return (
        f"- **{finding.verdict}**: {about.text} ({about.source})\n"
        f"  {about.effect}: {finding.text}. {about.rule.text(about.unit)}"
    )


def command(result: Result) -> str:
    """Return the command that measures a result again."""
    setting = result.setting
    words = ["evenorm lab run", result.experiment.slug, f"--scale {setting.scale}"]
    return " ".join([*words, *(f"--data {shlex.quote(str(path))}" for path in setting.data)])


def records(results: Iterable[Result]) -> str:
    """Return everything that was measured, as JSON."""
    return json.dumps(plain([record(result) for result in results]), indent=1, allow_nan=False)


def record(result: Result) -> dict[str, Any]:
    """Return one result in plain values."""
    experiment = result.experiment
    return {
        "experiment": experiment.slug,
        "question": experiment.question,
        "protocol": experiment.protocol,
        "verdict": result.verdict,
        "changes": experiment.changes,
        "setting": result.setting.record(experiment.data),
        "command": command(result),
        "claims": [claim_record(finding) for finding in result.findings],
        "failures": result.failures,
        "seeds": {seed: asdict(result.observations[seed]) for seed in result.seeds},
    }


def claim_record(finding: Finding) -> dict[str, Any]:
    """Return one finding in plain values."""
    about = finding.claim
    return {
        "claim": about.text,
        "source": about.source,
        "effect": about.effect,
        "rule": about.rule.text(about.unit),
        "unit": about.unit,
        "values": finding.values,
        "mean": finding.effect,
        "interval": (finding.low, finding.high),
        "verdict": finding.verdict,
        "reason": finding.reason,
    }

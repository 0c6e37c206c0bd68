"""The command `evenorm examine`: from its arguments to a report and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenorm.doctor import loading
from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import examine
from evenorm.doctor.formats import github, html, json, sarif
from evenorm.doctor.rule import HEADINGS, rules
from evenorm.doctor.settings import Settings

__all__ = ["Arguments", "explain_rule", "list_rules", "run"]

FOUND, WRONG_ARGUMENTS = 1, 2
DOCUMENTS = {"json": json.document, "sarif": sarif.document, "github": github.document, "html": html.document}


@dataclass(frozen=True)
class Arguments:
    """The command line; ``None`` and empty leave the project's setting."""

    target: str
    inputs: Sequence[str]
    loader: str | None
    optimizer: str | None
    state_dict: Path | None
    reference: str | None
    config: str | None
    intent: str | None
    causal: bool
    batch_size: int | None
    select: Sequence[str]
    ignore: Sequence[str]
    format: str
    fix: Path | None


def run(arguments: Arguments) -> int:
    """Examine; 0 without errors, 1 with, 2 for arguments that cannot be used."""
    try:
        if arguments.format not in ("text", *DOCUMENTS):
            raise ValueError(f"--format: expected text, {', '.join(DOCUMENTS)}; got {arguments.format!r}")
        model = loading.model(arguments.target)
        found = examine(model, **_given(arguments, model))
    except (ValueError, TypeError) as fault:
        sys.stderr.write(f"{fault}\n")
        return WRONG_ARGUMENTS
    _show(found, arguments.format)
    if arguments.fix is not None:
        _heal(found, model, arguments.fix)
    return 0 if found.ok else FOUND


def _given(arguments: Arguments, model: Any) -> dict[str, Any]:
    """The arguments of ``examine``."""
    settings = Settings.near(Path.cwd())
    optimizer = arguments.optimizer and loading.named("--optimizer", arguments.optimizer)(model)
    loader = arguments.loader and loading.named("--loader", arguments.loader)
    return {
        "batch": loading.inputs(arguments.inputs),
        "loader": loader() if callable(loader) else loader or None,
        "optimizer": optimizer or None,
        "state_dict": arguments.state_dict and loading.state_dict(arguments.state_dict),
        "reference": arguments.reference and loading.model(arguments.reference),
        "config": arguments.config and loading.config(arguments.config),
        "intent": arguments.intent or settings.intent,
        "causal": arguments.causal or settings.causal,
        "batch_size": arguments.batch_size or settings.batch_size,
        "select": arguments.select or settings.select,
        "ignore": (*settings.ignore, *arguments.ignore),
        "ignore_paths": settings.ignore_paths,
    }


def _show(found: Examination, form: str) -> None:
    if form == "text":
        Console(soft_wrap=True).print(found)
    else:
        sys.stdout.write(DOCUMENTS[form](found) + "\n")


def _heal(found: Examination, model: Any, file: Path) -> None:
    """Make the safe fixes, and write the healed weights."""
    from safetensors.torch import save_model

    healed = found.fix()
    save_model(model, str(file))
    calls = dict.fromkeys(finding.fix.call for finding in healed if finding.fix)
    sys.stderr.write(f"{len(healed)} fixed, written to {file}; in Python: {'; '.join(calls) or 'nothing'}\n")


def list_rules() -> int:
    """Print every rule: code, severity, name, title."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("code", "severity", "name", "finds"):
        table.add_column(heading, no_wrap=heading != "finds")
    for rule in rules():
        table.add_row(rule.code, rule.severity, rule.name, rule.title)
    Console().print(table)
    return 0


def explain_rule(code: str) -> int:
    """Print one rule's page."""
    for rule in rules():
        if code.upper() == rule.code or code == rule.name:
            console = Console(soft_wrap=True)
            console.print(Text(f"{rule.code} {rule.name} ({rule.severity})", style="bold"))
            console.print(Text(rule.title))
            for heading in HEADINGS:
                console.print(Text(f"\n{heading}", style="bold"))
                console.print(Text(rule.texts[heading]))
            return 0
    sys.stderr.write(f"--explain: no rule is called {code!r}; `evenorm examine --rules` lists them\n")
    return WRONG_ARGUMENTS

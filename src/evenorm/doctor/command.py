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
from evenorm.doctor.advice import advise
from evenorm.doctor.checkpoint import Checkpoint
from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import admit, judge
from evenorm.doctor.finding import counted
from evenorm.doctor.formats import github, html, json, sarif, text
from evenorm.doctor.modes import evaluate
from evenorm.doctor.rule import HEADINGS, rules, selected
from evenorm.doctor.settings import Settings
from evenorm.doctor.subject import Subject
from evenorm.doctor.table import table

__all__ = ["Arguments", "explain_rule", "list_rules", "run"]

FOUND, UNUSABLE = 1, 2
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
    evaluation: bool
    batch_size: int | None
    select: Sequence[str]
    ignore: Sequence[str]
    format: str
    fix: Path | None
    table: bool
    advise: bool


def run(arguments: Arguments) -> int:
    """Examine; 0 without errors, 1 with, 2 for what cannot be used: arguments, or a batch that does not run."""
    try:
        if arguments.format not in ("text", *DOCUMENTS):
            raise ValueError(f"--format: expected text, {', '.join(DOCUMENTS)}; got {arguments.format!r}")
        model = loading.model(arguments.target)
        settings = Settings.near(Path.cwd())
        state_dict = arguments.state_dict and loading.state_dict(arguments.state_dict)
        left = Checkpoint.of(model, state_dict).load(model) if state_dict else []
        if arguments.evaluation:
            evaluate(model)
        subject = admit(model, state_dict=state_dict, **_given(arguments, settings, model))
        if left:
            subject.notes.append(f"{counted(len(left), 'tensor')} of the checkpoint fit nothing, {left[0]} first")
        if arguments.table or arguments.advise:
            return _shown(subject, arguments)
        asked = selected(arguments.select or settings.select, (*settings.ignore, *arguments.ignore))
        found = judge(subject, asked, settings.ignore_paths)
    except (ValueError, TypeError) as fault:
        sys.stderr.write(f"{fault}\n")
        return UNUSABLE
    _show(found, arguments.format)
    if arguments.fix is not None:
        _heal(found, model, arguments.fix)
    if found.of("error"):
        return FOUND
    return 0 if found.failure is None else UNUSABLE


def _shown(subject: Subject, arguments: Arguments) -> int:
    """Print the table or the advice instead of the findings."""
    if subject.trace is None or subject.trace.failure is not None:
        raise ValueError("\n".join(subject.notes) or "--table and --advise need a batch: --input 8,3,224,224")
    passed = subject.trace
    parts = [table(passed.calls, passed.gradients, passed.updates)] if arguments.table else advise(subject)
    if arguments.format == "json":
        sys.stdout.write(json.text([part.to_dict() for part in parts]) + "\n")
    else:
        text.terminal().print(*(parts or [Text("no normalization layer was reached")]), sep="\n")
    return 0


def _given(arguments: Arguments, settings: Settings, model: Any) -> dict[str, Any]:
    """The arguments of ``admit``, but for the checkpoint."""
    optimizer = arguments.optimizer and loading.named("--optimizer", arguments.optimizer)(model)
    loader = arguments.loader and loading.named("--loader", arguments.loader)
    return {
        "batch": loading.inputs(arguments.inputs),
        "loader": loader() if callable(loader) else loader or None,
        "optimizer": optimizer or None,
        "reference": arguments.reference and loading.model(arguments.reference),
        "config": arguments.config and loading.config(arguments.config),
        "intent": arguments.intent or settings.intent,
        "causal": arguments.causal or settings.causal,
        "batch_size": arguments.batch_size or settings.batch_size,
    }


def _show(found: Examination, form: str) -> None:
    if form == "text":
        text.terminal().print(found)
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
    text.terminal().print(table)
    return 0


def explain_rule(code: str) -> int:
    """Print one rule's page."""
    for rule in rules():
        if code.upper() == rule.code or code == rule.name:
            console = Console()
            console.print(Text(f"{rule.code} {rule.name} ({rule.severity})", style="bold"))
            console.print(Text(rule.title))
            for heading in HEADINGS:
                console.print(Text(f"\n{heading}", style="bold"))
                # Broken anew for this terminal.
                console.print(Text(" ".join(rule.texts[heading].replace("``", "`").split())))
            return 0
    sys.stderr.write(f"--explain: no rule is called {code!r}; `evenorm examine --rules` lists them\n")
    return UNUSABLE

"""An examination as a page of its own, which loads nothing."""

from __future__ import annotations

from html import escape

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding
from evenorm.doctor.formats.text import is_torch, shown
from evenorm.doctor.rule import rules

__all__ = ["STYLE", "document", "framed"]

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border-left: .3rem solid; padding: .1rem 1rem; margin: 1.2rem 0; overflow-wrap: anywhere; }
article h2 { font-size: 1.1rem; margin: .3rem 0; } article p { margin: .3rem 0; }
.error { border-color: #c62828; } .warning { border-color: #b26a00; } .info { border-color: #1565c0; }
code { font: .9em ui-monospace, monospace; } table { border-collapse: collapse; }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top; } small { opacity: .75; }
"""


def framed(title: str, body: str) -> str:
    """A page around a body."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>"
    )


def document(examination: Examination) -> str:
    """All findings and notes."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in examination.notes)
    body = f"<p>{escape(examination.summary())}</p>" + "".join(map(_article, examination))
    return framed("evenorm examine", body + (f"<h2>Not examined</h2><ul>{notes}</ul>" if notes else ""))


def _article(finding: Finding) -> str:
    figures = ", ".join(
        f"{escape(name)} <b>{escape(shown(value))}</b>" for name, value in finding.evidence.items() if value is not None
    )
    seen = finding.file is not None and not is_torch(finding.file)
    lines = [
        f"<p>{escape(finding.message)}.</p>",
        f"<p><small>Measured: {figures}</small></p>" if figures else "",
        f"<p>Do: {escape(finding.advice)}.</p>",
        f"<p>Fix: <code>{escape(finding.fix.call)}</code></p>" if finding.fix else "",
        f"<p><small>{escape(finding.file or '')}:{finding.line}</small></p>" if seen else "",
    ]
    title = next((rule.title for rule in rules() if rule.code == finding.code), "")
    return (
        f'<article class="{finding.severity}"><h2><code>{escape(finding.path or "(model)")}</code></h2>'
        f"<p><b>{finding.code} {finding.severity}</b> <small>{escape(title)}</small></p>{''.join(lines)}</article>"
    )

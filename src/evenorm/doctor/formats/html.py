"""An examination as a page of its own, which loads nothing."""

from __future__ import annotations

from html import escape

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding
from evenorm.doctor.formats.text import shown

__all__ = ["STYLE", "document", "framed"]

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border-left: .3rem solid; padding: .2rem 1rem; margin: 1rem 0; }
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
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(shown(value))}</td></tr>" for name, value in finding.evidence.items()
    )
    place = f"<small>{escape(finding.file)}:{finding.line}</small>" if finding.file else ""
    fix = f"<p>Fix: <code>{escape(finding.fix.call)}</code></p>" if finding.fix else ""
    return (
        f'<article class="{finding.severity}"><h2><code>{escape(finding.path or "(model)")}</code> {finding.code} '
        f"<small>{finding.severity}</small></h2><p>{escape(finding.message)}.</p><table>{rows}</table>"
        f"<p>{escape(finding.advice)}.</p>{fix}{place}</article>"
    )

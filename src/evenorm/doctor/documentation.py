"""Pages of documentation, one per rule: its texts, and what it really says of its specimens."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from evenorm.doctor.rule import HEADINGS, Rule, rules
from evenorm.doctor.specimens import examined

__all__ = ["index", "page", "pages"]

HOST = "https://github.com"
# Further numbers of one repository follow without its name.
THREADS = re.compile(r"\b([\w.-]+/[\w.-]+)((?:,? ?#\d+)+)")
NUMBER = re.compile(r"#(\d+)")


def pages() -> dict[str, str]:
    """Markdown by file name: an index, and a page for each rule."""
    return {"index.md": index()} | {f"{rule.code.lower()}.md": page(rule) for rule in rules()}


def index() -> str:
    """A table of all rules."""
    rows = [f"| [{r.code}]({r.code.lower()}.md) | {r.severity} | {r.name} | {r.title} |" for r in rules()]
    return "\n".join(["# Rules", "", "| code | severity | name | finds |", "|---|---|---|---|", *rows, ""])


def page(rule: Rule) -> str:
    """One rule's page; its specimens are examined for it."""
    parts = [f"# {rule.code} {rule.name}", f"{rule.title}. Severity: {rule.severity}."]
    for heading in HEADINGS:
        parts += [f"## {heading}", THREADS.sub(_linked, rule.texts[heading])]
    parts += ["## It fires on", *_specimens(rule, ailing=True), "## It is silent on", *_specimens(rule, ailing=False)]
    return "\n\n".join(parts) + "\n"


def _specimens(rule: Rule, *, ailing: bool) -> Iterator[str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for specimen in rule.ailing() if ailing else rule.healthy():
            said = "\n".join(str(finding) for finding in examined(specimen, specimen.model, rule.code))
            about = specimen.about[:1].upper() + specimen.about[1:]
            yield f"**{about}**\n\n```\n{specimen.model}\n```" + (f"\n\n```\n{said}\n```" if said else "")


def _linked(threads: re.Match[str]) -> str:
    repository, numbers = threads[1], NUMBER.findall(threads[2])
    return " ".join(f"[{repository}#{number}]({HOST}/{repository}/issues/{number})" for number in numbers)

"""A rule: one file of the folder ``rules``, which is found there and listed nowhere.

The file's name gives code and name (``en112_flipped_momentum.py`` is EN112, flipped-momentum), its docstring the
texts, and the module has ``severity``, ``check``, ``ailing`` and ``healthy``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.subject import Subject

__all__ = ["HEADINGS", "Rule", "Specimen", "rules", "selected"]

HEADINGS = ("What it finds", "Why it matters", "Instead", "Fix", "References")


def _nothing(model: nn.Module) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Specimen:
    """A model that a rule must, or must not, find fault with.

    Attributes:
        about: what it is, in a few words.
        model: the model.
        batch: what to examine it with.
        options: gives the further arguments of ``examine``, made for the model.
        loop: a training loop that is watched instead: called with the model and an optimizer for it.
    """

    about: str
    model: nn.Module
    batch: Any = None
    options: Callable[[nn.Module], Mapping[str, Any]] = _nothing
    loop: Callable[[nn.Module, Optimizer], object] | None = None


@dataclass(frozen=True)
class Rule:
    """A rule as its file describes it."""

    code: str
    name: str
    severity: Severity
    title: str
    texts: Mapping[str, str]
    check: Callable[[Subject], Iterator[Symptom]]
    ailing: Callable[[], Iterator[Specimen]]
    healthy: Callable[[], Iterator[Specimen]]

    @staticmethod
    def of(module: ModuleType) -> Rule:
        """Read a rule's module."""
        code, _, name = module.__name__.rpartition(".")[2].partition("_")
        title, texts = _read(inspect.cleandoc(module.__doc__ or ""))
        missing = [heading for heading in HEADINGS if heading not in texts]
        if missing:
            raise ValueError(f"{module.__name__}: expected the headings {', '.join(HEADINGS)}; {missing} are missing")
        return Rule(
            *(code.upper(), name.replace("_", "-"), module.severity, title, texts),
            *(module.check, module.ailing, module.healthy),
        )


def _read(docstring: str) -> tuple[str, dict[str, str]]:
    """Title and text by heading."""
    title, _, rest = docstring.partition("\n")
    texts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in rest.splitlines():
        if line.endswith(":") and line[:-1] in HEADINGS:
            lines = texts.setdefault(line[:-1], [])
        else:
            lines.append(line)
    return title.rstrip("."), {heading: inspect.cleandoc("\n".join(part)) for heading, part in texts.items()}


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """All rules by code."""
    folder = importlib.import_module("evenorm.doctor.rules")
    names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    return tuple(Rule.of(importlib.import_module(f"{folder.__name__}.{name}")) for name in names)


def selected(select: Sequence[str] = (), ignore: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules whose code starts with one of ``select`` (all, if empty) and none of ``ignore``; or by name.

    Raises:
        ValueError: a selection that matches no rule.
    """
    for word in (*select, *ignore):
        if not any(_matches(rule, word) for rule in rules()):
            raise ValueError(f"no rule is called {word!r}; `evenorm examine --rules` lists them")
    chosen = [rule for rule in rules() if not select or any(_matches(rule, word) for word in select)]
    return tuple(rule for rule in chosen if not any(_matches(rule, word) for word in ignore))


def _matches(rule: Rule, word: str) -> bool:
    return rule.code.startswith(word.upper()) or rule.name == word

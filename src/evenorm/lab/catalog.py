"""The experiments, found by folder: one file each."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from evenorm.lab import experiments
from evenorm.lab.experiment import Experiment

__all__ = ["UnknownExperimentError", "catalog", "choose"]


class UnknownExperimentError(ValueError):
    """There is no experiment of that name; the message says which there are."""


def catalog() -> dict[str, Experiment]:
    """Return every experiment by its slug, in the order of the articles' claims.

    Raises:
        TypeError: a file in the folder has no ``EXPERIMENT``.
    """
    found = {}
    for entry in pkgutil.iter_modules(experiments.__path__):
        experiment = getattr(import_module(f"{experiments.__name__}.{entry.name}"), "EXPERIMENT", None)
        if not isinstance(experiment, Experiment):
            raise TypeError(f"lab/experiments/{entry.name}.py: expected EXPERIMENT = Experiment(…), got {experiment!r}")
        found[experiment.slug] = experiment
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def choose(names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of these names, each once; all of them for no name.

    Raises:
        UnknownExperimentError: there is none of that name.
    """
    known = catalog()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3) or list(known)
            raise UnknownExperimentError(f"no experiment is called {name!r}; there is {', '.join(near)}.")
    return [known[name] for name in (dict.fromkeys(names) if names else known)]


def _place(slug: str) -> tuple[int, str]:
    order = experiments.ORDER
    return (order.index(slug) if slug in order else len(order)), slug

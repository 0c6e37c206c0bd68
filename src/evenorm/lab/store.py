"""Finished seeds, kept as files: nothing that is known is measured again."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evenorm.lab.experiment import Experiment, Observation
from evenorm.lab.setting import Setting

# Says what a measurement means, and takes no part in it.
WORDS = "evenorm.lab.experiment"


class Store:
    """A folder with one file for every finished seed.

    The file's name holds a digest of the code that measured (the experiment's and what it uses of the lab, without
    comments, docstrings and the words and rules of the experiment itself) and of the setting.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, experiment: Experiment, setting: Setting, seed: int) -> Path:
        """Return where a seed is kept."""
        record = json.dumps([code(experiment.module), setting.record(experiment.data)], sort_keys=True)
        digest = hashlib.sha256(record.encode()).hexdigest()[:16]
        return self.folder / experiment.slug / f"{setting.scale}-{digest}-{seed}.json"

    def load(self, experiment: Experiment, setting: Setting, seed: int) -> Observation | None:
        """Return a finished seed, or none."""
        file = self.file(experiment, setting, seed)
        if not file.is_file():
            return None
        try:
            return Observation(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            # Damaged from outside: measured again.
            return None

    def save(self, experiment: Experiment, setting: Setting, seed: int, observation: Observation) -> None:
        """Keep a finished seed: a whole file or none."""
        file = self.file(experiment, setting, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(plain(asdict(observation)), allow_nan=False), encoding="utf-8")
        draft.replace(file)


def plain(value: Any) -> Any:
    """Return what JSON can hold: none in place of numbers that are not finite.

    >>> plain({"losses": (1.0, float("inf"))})
    {'losses': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def code(module: str) -> str:
    """Return a digest of a module and of every module of the lab that it uses, at any depth."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name == WORDS:
            continue
        tree = ast.parse(_source(name))
        waiting += _used(tree)
        seen[name] = _meaning(tree)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _used(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("evenorm.lab"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if find_module(name)] or [node.module]
    return found


def find_module(name: str) -> bool:
    """Whether a dotted name is a module and not a name in one.

    >>> find_module("evenorm.lab.store"), find_module("evenorm.lab.store.plain")
    (True, False)
    """
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _meaning(tree: ast.Module) -> str:
    """The syntax without docstrings and without the experiment's words: its claims, rules and plots."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                body[0] = ast.copy_location(ast.Pass(), body[0])
    kept = [node for node in tree.body if not _is_words(node)]
    return ast.dump(ast.Module(kept, []))


def _is_words(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["EXPERIMENT"]

"""A pair of scripts, which differ in the lines that heal, and how well the doctor tells them apart."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from evenorm.doctor.examination import Examination

Health = Literal["ailing", "healed"]
Script = Callable[[Health], Examination]

LEAST_RECALL, LEAST_PRECISION = 0.95, 0.98

PAIRS: list[Pair] = []


@dataclass(frozen=True)
class Pair:
    """A script in both states.

    Attributes:
        code: what the doctor must find in the ailing state.
        thread: the public thread that it follows.
        also: other codes that are right for the ailing state.
    """

    code: str
    thread: str
    also: tuple[str, ...]
    script: Script

    @property
    def name(self) -> str:
        return f"{self.code}-{self.script.__name__}"

    def run(self, health: Health) -> Examination:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.script(health)


def pair(code: str, thread: str, *, also: tuple[str, ...] = ()) -> Callable[[Script], Script]:
    """Admit a script to the clinic."""

    def admit(script: Script) -> Script:
        PAIRS.append(Pair(code, thread, also, script))
        return script

    return admit


def admitted() -> list[Pair]:
    """All pairs, in the order of their codes."""
    folder = importlib.import_module("clinic")
    for found in pkgutil.iter_modules(folder.__path__):
        if not found.name.startswith("_"):
            importlib.import_module(f"clinic.{found.name}")
    return sorted(PAIRS, key=lambda pair: pair.name)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found in both states of one pair, and what it should not have."""

    pair: Pair
    found: bool
    false_alarms: tuple[str, ...]

    @staticmethod
    def of(pair: Pair) -> Diagnosis:
        """Run both states. A false alarm is an error or warning that is not the fault, or the fault when healed."""
        ailing, healed = pair.run("ailing"), pair.run("healed")
        right = {pair.code, *pair.also}
        alarms = [f"ailing: {f}" for f in ailing if f.severity != "info" and f.code not in right]
        alarms += [f"healed: {f}" for f in healed if f.severity != "info" or f.code == pair.code]
        return Diagnosis(pair, pair.code in ailing.codes, tuple(alarms))


def recall(diagnoses: Iterable[Diagnosis]) -> float:
    """Faults found, of all faults."""
    found = [diagnosis.found for diagnosis in diagnoses]
    return sum(found) / len(found)


def precision(diagnoses: Iterable[Diagnosis]) -> float:
    """Faults found, of all that was said."""
    diagnoses = list(diagnoses)
    found = sum(diagnosis.found for diagnosis in diagnoses)
    return found / (found + sum(len(diagnosis.false_alarms) for diagnosis in diagnoses))

"""What is asked of the benchmark, and what that chooses of what is here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evenorm.bench import allocator, saved, suites, watched
from evenorm.bench.device import CPU, DEVICES, Device
from evenorm.bench.peers import PEERS, missing

__all__ = ["NAMES", "ArgumentError", "Choice", "Settings"]

NAMES = (*suites.SUITES, "models", saved.SUITE, "dist", watched.SUITE)
# What runs on a GPU too.
_ANYWHERE = ("layers", "fused", "dist")


class ArgumentError(ValueError):
    """An argument cannot be meant; the message says which and what could be."""


@dataclass(frozen=True)
class Settings:
    """What is measured, as it was asked for."""

    suites: tuple[str, ...]
    against: str
    memory: str
    only: str | None
    threads: int | None
    seconds: float
    quick: bool
    device: str = CPU.name

    def __str__(self) -> str:
        parts = ["evenorm bench", *self.suites, f"--against {self.against}", f"--memory {self.memory}"]
        parts += [f"--only '{self.only}'"] if self.only is not None else []
        parts += [f"--threads {self.threads}"] if self.threads is not None else []
        parts += [f"--device {self.device}"] if self.device != CPU.name else []
        return " ".join([*parts, "--quick" if self.quick else f"--seconds-per-row {self.seconds:g}"])


@dataclass
class Choice:
    """Suites, peers, memory and rows that were asked for and can be measured here."""

    suites: list[str]
    peers: list[str]
    memory: list[str]
    device: Device
    only: re.Pattern[str]
    notes: list[str]
    """What is left out, and why."""

    @classmethod
    def of(cls, settings: Settings) -> Choice:
        """Read the settings.

        Raises:
            ArgumentError: one of them cannot be meant.
        """
        names = _choices("SUITE", settings.suites, NAMES)
        peers = _choices("--against", settings.against.split(","), tuple(PEERS))
        memory = _choices("--memory", settings.memory.split(","), (suites.FRESH, suites.REUSED))
        (place,) = _choices("--device", [settings.device], tuple(DEVICES))
        device = DEVICES[place]
        if (reason := device.missing()) is not None:
            raise ArgumentError(f"--device {place}: {reason}")
        if settings.threads is not None and settings.threads < 1:
            raise ArgumentError(f"--threads {settings.threads}: expected 1 or more")
        try:
            only = re.compile(settings.only or "", re.IGNORECASE)
        except re.error as fault:
            raise ArgumentError(f"--only {settings.only!r}: {fault}") from None
        notes = [f"{peer} is left out: {reason}" for peer in peers if (reason := missing(peer))]
        found = cls(names, [peer for peer in peers if missing(peer) is None], memory, device, only, notes)
        if device is not CPU:
            found._leave_the_cpu()
        if suites.REUSED in found.memory and not allocator.can_keep():
            found.memory.remove(suites.REUSED)
            notes.append("reused memory is left out: this C library has no mallopt")
        return found

    def has(self, suite: str, row: str) -> bool:
        """Whether what a suite without plans has is chosen."""
        return suite in self.suites and bool(self.only.search(f"{suite} {row}"))

    def _leave_the_cpu(self) -> None:
        others = [name for name in self.suites if name not in _ANYWHERE]
        others += [peer for peer in self.peers if peer not in self.device.peers]
        self.notes += [f"{name} is left out: it runs on the CPU" for name in others]
        self.suites = [name for name in self.suites if name in _ANYWHERE]
        self.peers = [peer for peer in self.peers if peer in self.device.peers]
        self.memory = [suites.CACHED]


def _choices(option: str, values: Sequence[str], choices: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(value.strip() for value in values))
    for value in found:
        if value not in choices:
            raise ArgumentError(f"{option} {value!r}: expected any of {', '.join(choices)}")
    return found

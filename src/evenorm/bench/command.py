"""The command `evenorm bench`: from its arguments to a table, files and an exit code."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from evenorm.bench import allocator, dist, machine, models, readme, session, suites, terminal, watched
from evenorm.bench.device import CPU, DEVICES
from evenorm.bench.peers import PEERS, missing
from evenorm.bench.row import Row
from evenorm.bench.run import Command, Run
from evenorm.bench.summary import summarize
from evenorm.surgery import accelerate

__all__ = ["NAMES", "ArgumentError", "Files", "Settings", "run"]

WRONG_ARGUMENTS, INTERRUPTED = 2, 130
NAMES = (*suites.SUITES, "models", "dist", watched.SUITE)
_QUICK_SECONDS = 0.01


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


@dataclass(frozen=True)
class Files:
    """Where a run is written to, apart from the terminal."""

    json: Path | None = None
    html: Path | None = None
    readme: Path | None = None

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""
        if self.html is not None and find_spec("plotly") is None:
            raise ArgumentError("--html: plotly is not installed: pip install 'evenorm[bench]'")
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise ArgumentError(f"--html {self.html}: expected a file in a folder that exists")
        if self.readme is not None and readme.BEGIN not in self.readme.read_text(encoding="utf-8"):
            raise ArgumentError(f"--readme {self.readme}: the file has no line {readme.BEGIN}")

    def begin(self, facts: dict[str, str]) -> Run:
        """The run that the figures' file holds, or an empty one."""
        if self.json is None or not self.json.exists():
            return Run(facts)
        found = _read("--json", self.json)
        for name in facts.keys() | found.machine.keys():
            here, there = (known.get(name, "none") for known in (facts, found.machine))
            if here != there:
                raise ArgumentError(
                    f"--json {self.json}: its rows are of another machine ({name}: there {there}, here {here}); "
                    "name another file"
                )
        return found

    def keep(self, run: Run) -> None:
        """Write the figures; after each row, so that whatever ends the run leaves what is finished."""
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            run.write(self.json)

    def show(self, run: Run, figures: Path | None) -> None:
        """Write what is made from the figures, and from which file they are."""
        if self.html is not None:
            from evenorm.bench import plot

            plot.write(run, self.html)
        if self.readme is not None:
            readme.insert(run, figures, self.readme)


def run(settings: Settings, files: Files, watch: watched.Watch, source: Path | None = None) -> int:
    """Measure, or read what was measured; then show and write it.

    Args:
        settings: what is measured.
        files: where it is written to.
        watch: what the suite ``monitor`` measures.
        source: an earlier run's JSON, shown instead.
    """
    console = Console(width=terminal.WIDTH, highlight=False)
    interrupted = False
    try:
        files.check()
        if source is not None:
            found = _read("--from", source)
            files.keep(found)
        else:
            found, interrupted = _measure(settings, files, watch, console)
    except (ArgumentError, OSError) as fault:
        sys.stderr.write(f"{fault}\n")
        return WRONG_ARGUMENTS
    if found.rows:
        console.print(terminal.closing(found, summarize(found)))
        files.show(found, files.json or source)
    return INTERRUPTED if interrupted else 0


def _measure(settings: Settings, files: Files, watch: watched.Watch, console: Console) -> tuple[Run, bool]:
    """The run, and whether Ctrl-C ended it."""
    command, total, rows = _begin(settings, watch)
    found = files.begin(machine.machine())
    found.begin(command)
    console.print(machine.line(found.machine))
    for note in command.notes:
        console.print(note, style="dim")
    said = len(command.notes)

    def keep(row: Row) -> None:
        found.take(row)
        files.keep(found)

    interrupted = terminal.watch(rows, total, keep, console)
    for note in command.notes[said:]:
        console.print(note)
    return found, interrupted


def _read(option: str, file: Path) -> Run:
    try:
        return Run.read(file)
    except ValueError as fault:
        raise ArgumentError(f"{option} {fault}") from None


def _begin(settings: Settings, watch: watched.Watch) -> tuple[Command, int, Iterator[Row]]:
    """What is measured, how many rows there will be, and the rows to come."""
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
    peers = [peer for peer in peers if missing(peer) is None]
    if device is not CPU:
        here = (*suites.SUITES, "dist")
        others = [*(name for name in names if name not in here), *(p for p in peers if p not in device.peers)]
        notes += [f"{name} is left out: it runs on the CPU" for name in others]
        names, memory = [name for name in names if name in here], [suites.CACHED]
        peers = [peer for peer in peers if peer in device.peers]
    if suites.REUSED in memory and not allocator.can_keep():
        memory.remove(suites.REUSED)
        notes.append("reused memory is left out: this C library has no mallopt")
    networks = [name for name in models.MODELS if "models" in names and only.search(f"models {name}")]
    monitored = watched.SUITE in names and bool(only.search(f"{watched.SUITE} {watched.NETWORK}"))
    if (networks or monitored) and find_spec("transformers") is None:
        networks, monitored = [], False
        notes.append("models are left out: transformers is not installed: pip install 'evenorm[bench]'")
    plans = session.chosen([name for name in names if name in suites.SUITES], memory, peers, only, settings.quick)
    synced = "dist" in names and bool(only.search("dist SyncBatchNorm"))
    shapes = (1 if settings.quick else sum(map(len, dist.SHAPES.values()))) if synced else 0
    total = sum(len(plan.directions) for plan in plans) + 2 * len(networks) + shapes + monitored
    if not total:
        raise ArgumentError(f"{settings}: there is no such row")
    machine.use_threads(settings.threads)
    seconds = _QUICK_SECONDS if settings.quick else settings.seconds
    steps = (row for name in networks for row in models.measure(name, accelerate, seconds, settings.quick))
    watching = watched.measure(watch, seconds, settings.quick) if monitored else ()
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    command = Command(str(settings), today, machine.load(), notes)
    # Models first: memory that is kept cannot be given back.
    parts = [
        steps,
        watching,
        dist.measure(seconds, settings.quick, device) if synced else (),
        session.play(plans, seconds, command.notes, device),
    ]
    return command, total, itertools.chain(*parts)


def _choices(option: str, values: Sequence[str], choices: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(value.strip() for value in values))
    for value in found:
        if value not in choices:
            raise ArgumentError(f"{option} {value!r}: expected any of {', '.join(choices)}")
    return found

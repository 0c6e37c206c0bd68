"""The command `evenorm compare`: from its arguments to a report and an exit code."""

from __future__ import annotations

import math
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from evenorm.lab.comparison import terminal
from evenorm.lab.comparison.compare import Comparison, Protocol, begin
from evenorm.lab.comparison.record import record
from evenorm.lab.comparison.sentences import conclude
from evenorm.lab.data import load
from evenorm.lab.networks import MODELS, PLACEMENTS
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.own import build_own, is_own
from evenorm.lab.report.comparison import write
from evenorm.lab.workers import available

INTERRUPTED = 130
# More processes than this would mostly share memory bandwidth.
MOST_WORKERS = 8


class ArgumentError(ValueError):
    """An argument cannot be meant; the message says which and what could be."""


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    """Return a value that is one of the choices."""
    if value not in choices:
        raise ArgumentError(f"{option} {value!r}: expected one of {', '.join(choices)}.")
    return value


def protocol_of(
    norms: str, batch_sizes: Sequence[int], rate: float | None, seeds: int, placement: str, model: str
) -> Protocol:
    """Check the arguments and put them together."""
    names = tuple(dict.fromkeys(name.strip() for name in norms.split(",")))
    for name in names:
        choice("--norms", name, tuple(NORMALIZERS))
    for option, least in [("--batch-size", min(batch_sizes)), ("--seeds", seeds)]:
        if least < 1:
            raise ArgumentError(f"{option} {least}: expected 1 or more.")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ArgumentError(f"--lr {rate:g}: expected a number above 0.")
    return Protocol(
        names,
        tuple(dict.fromkeys(batch_sizes)),
        seeds,
        rate,
        PLACEMENTS[PLACEMENTS.index(choice("--placement", placement, PLACEMENTS))],
        model if is_own(model) else choice("--model", model, MODELS),
    )


def prepare(protocol: Protocol, folder: Path | None, output: Path) -> Comparison:
    """Load the data and make sure that there is something to run, and a place to write to."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ArgumentError(f"--output {output}: expected a file in a folder that exists.")
    if is_own(protocol.model):
        # Complain now, and not in every worker.
        build_own(protocol.model, "batch")
    comparison = begin(protocol, load(folder), folder)
    if not comparison.total:
        reasons = {f"{row.normalizer}: {row.reason}" for row in comparison.rows}
        raise ArgumentError(f"--norms: none applies here ({'; '.join(sorted(reasons))}).")
    most = len(comparison.images.train_labels)
    if max(protocol.batch_sizes) > most:
        raise ArgumentError(
            f"--batch-size {max(protocol.batch_sizes)}: there are {most:,} images to train on; pass fewer."
        )
    return comparison


def run(
    *,
    norms: str,
    batch_sizes: Sequence[int],
    rate: float | None,
    seeds: int,
    placement: str,
    model: str,
    folder: Path | None,
    output: Path,
    show: bool,
    as_json: bool,
) -> int:
    """Make a comparison, print it, write its report, and return the exit code.

    0: done. 1: nothing could be measured. 2: an argument is wrong. 130: stopped by Ctrl-C, with a
    report of what had finished.
    """
    talk = Console(stderr=True)
    missing = [name for name in ("plotly", "sklearn", "PIL") if not find_spec(name)]
    if missing:
        say(f"{', '.join(missing)} missing: pip install 'evenorm[lab]'")
        return 1
    try:
        protocol = protocol_of(norms, batch_sizes, rate, seeds, placement, model)
        comparison = prepare(protocol, folder, output)
    except ValueError as fault:
        say(str(fault))
        return 2
    workers = min(available(), MOST_WORKERS, comparison.total)
    talk.print(terminal.introduction(comparison, workers), highlight=False)
    interrupted = terminal.watch(comparison, workers, talk)
    if not any(row.outcomes for row in comparison.rows):
        say("stopped before the first run had finished." if interrupted else "every run failed:")
        for failure in comparison.failures:
            say(failure)
        return INTERRUPTED if interrupted else 1
    conclusion = conclude(comparison)
    write(comparison, conclusion, output)
    if as_json:
        sys.stdout.write(record(comparison, conclusion.sentences) + "\n")
    else:
        Console(highlight=False).print(terminal.summary(comparison, conclusion))
    partial = f" (stopped: {comparison.finished} of {comparison.total} runs)" if interrupted else ""
    talk.print(f"\nReport with all curves: {output}{partial}", highlight=False, soft_wrap=True)
    if show:
        webbrowser.open(output.absolute().as_uri())
    return INTERRUPTED if interrupted else 0


def say(line: str) -> None:
    """Print one line of complaint."""
    sys.stderr.write(f"evenorm compare: {line}\n")

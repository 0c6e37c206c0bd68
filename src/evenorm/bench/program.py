"""What a command measures: the rows to come, in an order that memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from evenorm.bench import dist, machine, models, saved, scaling, session, suites, watched
from evenorm.bench.row import Row
from evenorm.bench.saved import Saved
from evenorm.bench.settings import ArgumentError, Choice, Settings
from evenorm.surgery import accelerate

__all__ = ["Program", "program"]

_QUICK_SECONDS = 0.01


class Program(NamedTuple):
    """Rows to come, how many there are, and what is left out; more may be while they come."""

    rows: Iterator[Row]
    total: int
    saved: Iterator[Saved]
    """What is counted and not timed."""
    notes: list[str]


def program(settings: Settings, watch: watched.Watch) -> Program:
    """Everything that was asked for and can be measured here.

    Raises:
        ArgumentError: an argument cannot be meant, or there is no such row.
    """
    choice = Choice.of(settings)
    if machine.use_threads(settings.threads) < 2 and scaling.SUITE in choice.suites:
        choice.suites.remove(scaling.SUITE)
        choice.notes.append(f"{scaling.SUITE} is left out: there is one thread alone")
    quick, seconds = settings.quick, _QUICK_SECONDS if settings.quick else settings.seconds
    networks = [name for name in models.MODELS if choice.has("models", name)]
    monitored = choice.has(watched.SUITE, watched.NETWORK)
    if (networks or monitored) and find_spec("transformers") is None:
        networks, monitored = [], False
        choice.notes.append("models are left out: transformers is not installed: pip install 'evenorm[bench]'")
    synced = choice.has("dist", "SyncBatchNorm")
    names = [name for name in choice.suites if name in suites.SUITES]
    plans = session.chosen(names, choice.memory, choice.peers, choice.only, quick)
    total = sum(len(plan.directions) for plan in plans) + 2 * len(networks) + synced * dist.count(quick) + monitored
    counted = [case for case in saved.cases() if choice.has(saved.SUITE, f"{case.title} {case.size}")]
    if not (total or counted):
        raise ArgumentError("; ".join([f"{settings}: there is no such row", *choice.notes]))
    # Models first: memory that is kept cannot be given back.
    parts = (
        *(models.measure(name, accelerate, seconds, quick) for name in networks),
        watched.measure(watch, seconds, quick) if monitored else (),
        dist.measure(seconds, quick, choice.device) if synced else (),
        session.play(plans, seconds, choice.notes, choice.device),
    )
    return Program(itertools.chain(*parts), total, map(saved.count, counted), choice.notes)

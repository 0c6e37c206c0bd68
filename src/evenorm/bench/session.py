"""A session: every plan of the chosen suites in order, fresh memory before reused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf
from time import perf_counter

from evenorm.bench import allocator, suites
from evenorm.bench.device import CPU, Device
from evenorm.bench.measure import Plan, measure
from evenorm.bench.row import Row

__all__ = ["LIMITS", "chosen", "play"]

LIMITS = {"layers": 15 * 60.0}
"""Seconds of a suite after which no case of it begins."""


def chosen(
    names: Sequence[str], memory: Sequence[str], against: Sequence[str], only: re.Pattern[str], quick: bool
) -> list[Plan]:
    """The plans of these suites whose suite, network, title, size or memory a regular expression finds."""
    found = [plan for name in names for plan in suites.plans(name, memory, against)]
    found = [plan for plan in found if only.search(_label(plan))]
    if quick:
        found = list(dict.fromkeys(suites.quick(plan) for plan in found))
    return sorted(found, key=lambda plan: plan.memory == suites.REUSED)


def play(plans: Sequence[Plan], seconds: float, notes: list[str], device: Device = CPU) -> Iterator[Row]:
    """The rows of all plans, one by one; a note says how many a suite's limit left out."""
    allocator.settle()
    keeping = False
    spent: defaultdict[str, float] = defaultdict(float)
    late: defaultdict[tuple[str, str], int] = defaultdict(int)
    for plan in plans:
        if spent[plan.suite] > LIMITS.get(plan.suite, inf):
            late[plan.suite, plan.memory] += len(plan.directions)
            continue
        if plan.memory == suites.REUSED and not keeping:
            allocator.keep_pages()
            keeping = True
        start = perf_counter()
        yield from measure(plan, seconds, device)
        spent[plan.suite] += perf_counter() - start
    for (suite, memory), rows in late.items():
        notes.append(
            f"{rows} rows of {suite} in {memory} memory are left out: its {LIMITS[suite] / 60:g} minutes were over; "
            "see --only"
        )


def _label(plan: Plan) -> str:
    case = plan.case
    return f"{plan.suite} {case.network} {case.title} {case.size} {plan.memory}"

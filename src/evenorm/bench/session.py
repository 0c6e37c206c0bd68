"""A session: every plan of the chosen suites in order, fresh memory before reused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from evenorm.bench import allocator, suites
from evenorm.bench.device import CPU, Device
from evenorm.bench.measure import Plan, measure
from evenorm.bench.row import Row

__all__ = ["chosen", "play"]


def chosen(
    names: Sequence[str], memory: Sequence[str], against: Sequence[str], only: re.Pattern[str], quick: bool
) -> list[Plan]:
    """The plans of these suites whose suite, network, title, size or memory a regular expression finds."""
    found = [plan for name in names for plan in suites.plans(name, memory, against)]
    found = [plan for plan in found if only.search(_label(plan))]
    if quick:
        found = list(dict.fromkeys(suites.quick(plan) for plan in found))
    return sorted(found, key=lambda plan: plan.memory == suites.REUSED)


def play(plans: Sequence[Plan], seconds: float, device: Device = CPU) -> Iterator[Row]:
    """The rows of all plans, one by one."""
    allocator.settle()
    keeping = False
    for plan in plans:
        if plan.memory == suites.REUSED and not keeping:
            allocator.keep_pages()
            keeping = True
        yield from measure(plan, seconds, device)


def _label(plan: Plan) -> str:
    case = plan.case
    return f"{plan.suite} {case.network} {case.title} {case.size} {plan.memory}"

"""Measuring a case: variants are built, gated, then timed in turns, pass by pass."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evenorm.bench.case import Case, Data
from evenorm.bench.device import CPU, Device
from evenorm.bench.expected import avoid_kinks
from evenorm.bench.gate import Verdict, check
from evenorm.bench.interval import Median
from evenorm.bench.peers import ALONE, OURS, Outputs, Unavailable, Variant, build
from evenorm.bench.peers.threads import many, one, single
from evenorm.bench.roof import COPY, copies
from evenorm.bench.row import Row, Timing
from evenorm.bench.stopwatch import interleave

__all__ = ["Plan", "measure", "timings"]


@dataclass(frozen=True)
class Plan:
    """A case, the passes to time, the memory to time them in, and the variants to time."""

    suite: str
    case: Case
    directions: tuple[str, ...]
    memory: str
    variants: tuple[str, ...]


def measure(plan: Plan, seconds: float, device: Device = CPU) -> Iterator[Row]:
    """The rows of a plan, each as soon as it is measured."""
    case = plan.case
    data = Data.of(case)
    avoid_kinks(case, data)
    if "compile" in plan.variants:
        torch.compiler.reset()
    # What the last case left, but not all of torch's own objects.
    gc.collect(1)
    variants, absent = _built(plan, data.on(device.name))
    verdicts, faults = _gated(case, data, variants)
    absent |= faults
    for direction in plan.directions:
        found = {name: Timing(absent=reason) for name, reason in absent.items()}
        if OURS not in absent:
            found |= _timed({n: v for n, v in variants.items() if n not in absent}, plan, direction, seconds, device)
        # In the order in which they were asked for, the roofs last.
        found = {name: found[name] for name in dict.fromkeys((*plan.variants, *found)) if name in found}
        for name, verdict in verdicts.items():
            timing = found.setdefault(name, Timing())
            timing.error, timing.share, timing.errors = verdict.error, verdict.share, verdict.errors
        yield _row(plan, direction, found, device)


def _built(plan: Plan, data: Data) -> tuple[dict[str, Variant], dict[str, str]]:
    variants: dict[str, Variant] = {}
    absent = {}
    for name in plan.variants:
        try:
            variants[name] = build(name, plan.case, data)
        except Unavailable as reason:
            absent[name] = str(reason)
        # One variant that cannot be built is one row's news and not the end of the run.
        except Exception as fault:
            absent[name] = _said(fault)
    return variants, absent


def _gated(case: Case, data: Data, variants: Mapping[str, Variant]) -> tuple[dict[str, Verdict], dict[str, str]]:
    outputs, faults = {}, {}
    for name, variant in variants.items():
        try:
            with warnings.catch_warnings():
                # Compilers warn of their own matters, which would tear the table.
                warnings.simplefilter("ignore")
                outputs[name] = _fetched(variant.outputs())
        except Exception as fault:
            faults[name] = _said(fault)
    alone = {name: found for name, found in outputs.items() if name == ALONE}
    whole = {name: found for name, found in outputs.items() if name != ALONE}
    verdicts = check(case, data, whole)
    if alone:
        bare = replace(case, activation=None, residual=None)
        verdicts |= check(bare, replace(data, residual=None, d_total=None), alone)
    faults |= {name: f"wrong: {verdict.fault}" for name, verdict in verdicts.items() if verdict.fault}
    return verdicts, faults


def _fetched(outputs: Outputs) -> Outputs:
    """Outputs where the reference is."""
    return {name: found.cpu() if isinstance(found, Tensor) else found for name, found in outputs.items()}


def _said(fault: Exception) -> str:
    first = (str(fault).strip() or "no message").splitlines()[0]
    return f"{type(fault).__name__}: {first}"


def _timed(
    variants: Mapping[str, Variant], plan: Plan, direction: str, seconds: float, device: Device
) -> dict[str, Timing]:
    calls, absent = {}, {}
    for name, variant in variants.items():
        try:
            calls[name] = variant.call(direction)
        except Unavailable as reason:
            absent[name] = Timing(absent=str(reason))
    peaks = {}
    with torch.set_grad_enabled(direction != "forward"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Kept memory hides what a call holds.
        for name, call in calls.items() if plan.memory != "reused" else ():
            peaks[name] = device.peak(call)
        samples = interleave({**calls, **_roofs(plan, device)}, seconds, device.timed)
    found = timings(samples)
    for name, peak in peaks.items():
        found[name].peak = peak
    return found | absent


def _roofs(plan: Plan, device: Device) -> dict[str, Callable[[], object]]:
    """Copies, also on one thread where variants are."""
    roofs = device.roofs(plan.case)
    if any(many(name) for name in plan.variants):
        return {**roofs, one(COPY): single(roofs[COPY])}
    return {**roofs}


def timings(samples: Mapping[str, NDArray[np.float64]]) -> dict[str, Timing]:
    """Medians, and the ratios and differences of each variant to ours."""
    medians = {name: Median.of(rounds) for name, rounds in samples.items()}
    ours = medians[OURS]
    return {
        name: Timing(found.interval) if name == OURS else Timing(found.interval, found.over(ours), ours.less(found))
        for name, found in medians.items()
    }


def _row(plan: Plan, direction: str, found: dict[str, Timing], device: Device) -> Row:
    case = plan.case
    return Row(
        f"{plan.suite} {case.what}" if case.fuses else plan.suite,
        case.title,
        case.network,
        case.layer,
        case.size,
        case.dtype,
        case.training,
        direction,
        plan.memory,
        case.elements,
        case.bytes,
        copies(case, direction),
        found,
        sweeps=case.sweeps,
        cached=2 * case.bytes <= device.cache(),
    )

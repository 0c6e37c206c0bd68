"""The aims: what the kernels are to reach on two cores of a CPU, beside what a run measured, reached or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from typing import Literal, NamedTuple

from evenorm.bench.interval import geometric_mean
from evenorm.bench.peers import ALONE, SEPARATE
from evenorm.bench.roof import COPY
from evenorm.bench.run import Run
from evenorm.bench.suites import CACHED, FRESH
from evenorm.bench.summary import Summary
from evenorm.bench.table import Table, times

__all__ = ["AIMS", "Aim", "Figure", "tables"]


class Figure(NamedTuple):
    """What a run measured; and the worst row, where not the mean alone but each row is to reach the bound."""

    value: float
    worst: float | None = None


Measured = Callable[[Run, Summary], Figure | None]
"""Reads a figure from a run that has it."""


@dataclass(frozen=True)
class Aim:
    """A figure, and what it is to be at least or at most."""

    what: str
    sense: Literal["≥", "≤"]
    bound: float
    measured: Measured
    form: Callable[[float], str] = times

    def verdict(self, figure: Figure) -> str:
        """Whether a figure reaches the bound. A result that is wrong does not."""
        if not self._reached(figure.value):
            return "not met"
        return "met" if figure.worst is None or self._reached(figure.worst) else "on average"

    def _reached(self, value: float) -> bool:
        return value >= self.bound if self.sense == "≥" else value <= self.bound


def tables(run: Run, summary: Summary) -> Iterator[Table]:
    """One table, where a run on a CPU measured anything of it."""
    found = [(aim, figure) for aim in AIMS if (figure := aim.measured(run, summary)) is not None]
    tried = any(command.quick for command in run.commands)
    if not found or tried or any(row.memory == CACHED for row in run.rows):
        return
    missing = len(AIMS) - len(found)
    yield Table(
        "Aims",
        "Times as fast as others; rows slower than torch by more than 10 % or 3 µs; shares of the speed of copy_ in "
        "reused memory beyond the cache; our time over others where layers are fused. Geometric means, and in "
        "parentheses the worst row where each row is to reach the aim. Both is forward + backward."
        + (f" {missing} of {len(AIMS)} aims were not measured." if missing else ""),
        ("", "aim", "measured", ""),
        [
            (aim.what, f"{aim.sense} {aim.form(aim.bound)}", _said(aim, figure), aim.verdict(figure))
            for aim, figure in found
        ],
    )


def _said(aim: Aim, figure: Figure) -> str:
    if isnan(figure.value):
        return "wrong"
    return aim.form(figure.value) + ("" if figure.worst is None else f" ({aim.form(figure.worst)})")


def _layers(peer: str, dtype: str, direction: str, run: Run, summary: Summary) -> Figure | None:
    found = summary.means.get(("layers", dtype, direction, FRESH), {}).get(peer)
    return None if found is None else Figure(found.value)


def _slower(run: Run, summary: Summary) -> Figure | None:
    return Figure(len(summary.slower)) if summary.compared else None


def _share(direction: str, sweeps: int, run: Run, summary: Summary) -> Figure | None:
    for share in summary.shares:
        if (share.direction, share.sweeps, share.roof) == (direction, sweeps, COPY):
            return Figure(share.mean, share.worst)
    return None


def _fused(what: str, other: str, direction: str, run: Run, summary: Summary) -> Figure | None:
    rows = [row for row in run.rows if (row.suite, row.direction) == (f"fused {what}", direction)]
    found = [1 / ratio for row in rows if row.large and row.memory == FRESH and (ratio := row.ratio(other)) is not None]
    return Figure(geometric_mean(found), max(found)) if found else None


def _step(network: str, run: Run, summary: Summary) -> Figure | None:
    for row in run.rows:
        if (row.suite, row.network, row.direction) == ("models", network, "training"):
            return Figure(row.ratio("torch") or nan)
    return None


def _losses(network: str, run: Run, summary: Summary) -> Figure | None:
    for row in run.rows:
        if (row.suite, row.network, row.direction) == ("models", network, "training") and row.ours.error is not None:
            return Figure(row.ours.error)
    return None


def _keeps_more(run: Run, summary: Summary) -> Figure | None:
    return Figure(sum(saved.more for saved in run.saved)) if run.saved else None


def _fewer(norms: tuple[str, ...], run: Run, summary: Summary) -> Figure | None:
    """The fewest tensors of the input's size that we keep less than torch, of activations whose input torch keeps."""
    found = []
    for saved in run.saved:
        norm, _, activation = saved.what.rpartition("+")
        if norm in norms and activation in ("silu", "gelu", "gelu_tanh", "hardswish"):
            found.append((saved.separate.large - saved.ours.large) / saved.input)
    return Figure(min(found)) if found else None


_percent, _number, _small = "{:.0%}".format, "{:g}".format, "{:.0e}".format

AIMS = (
    Aim("layers float32 both, torch", "≥", 5.0, partial(_layers, "torch", "float32", "both")),
    Aim("layers float32 both, torch.compile", "≥", 2.5, partial(_layers, "compile", "float32", "both")),
    Aim("layers float32 both, JAX", "≥", 2.5, partial(_layers, "jax", "float32", "both")),
    Aim("layers float32 forward, torch", "≥", 4.0, partial(_layers, "torch", "float32", "forward")),
    Aim("layers bfloat16 both, torch", "≥", 8.0, partial(_layers, "torch", "bfloat16", "both")),
    Aim("rows slower than torch", "≤", 0, _slower, _number),
    Aim("share of copy_, forward", "≥", 0.80, partial(_share, "forward", 1), _percent),
    Aim("share of copy_, backward", "≥", 0.75, partial(_share, "backward", 1), _percent),
    Aim("share of copy_, forward in 2 sweeps", "≥", 0.65, partial(_share, "forward", 2), _percent),
    Aim("share of copy_, backward in 2 sweeps", "≥", 0.42, partial(_share, "backward", 2), _percent),
    *(
        Aim(f"{what} over {words}, {direction}", "≤", bound, partial(_fused, what, other, direction))
        for what, other, words, bound in (
            ("norm+relu", ALONE, "the norm alone", 1.1),
            ("norm+add+relu", ALONE, "the norm alone", 1.55),
            ("norm+add+relu", SEPARATE, "not fused", 0.6),
        )
        for direction in ("forward", "both")
    ),
    Aim("ResNet-50 training step, torch", "≥", 1.12, partial(_step, "ResNet-50")),
    Aim("MobileNetV2 training step, torch", "≥", 1.4, partial(_step, "MobileNetV2")),
    Aim("ResNet-50 losses, off torch's by", "≤", 1e-4, partial(_losses, "ResNet-50"), _small),
    Aim("MobileNetV2 losses, off torch's by", "≤", 1e-4, partial(_losses, "MobileNetV2"), _small),
    Aim("cases that save more than torch's layers", "≤", 0, _keeps_more, _number),
    Aim("SiLU, GELU, Hardswish save fewer tensors by", "≥", 1, partial(_fewer, ("norm", "add+norm")), _number),
    Aim("the same, a residual after the norm", "≥", 1, partial(_fewer, ("norm+add",)), _number),
)

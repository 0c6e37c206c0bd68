"""The aims: what the kernels are to reach on two cores of a CPU, and on a GPU, beside what a run measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from typing import Literal, NamedTuple

from evenorm.bench.interval import geometric_mean
from evenorm.bench.peers import ALONE, SEPARATE
from evenorm.bench.roof import COPY
from evenorm.bench.row import Row
from evenorm.bench.run import Run
from evenorm.bench.suites import BEYOND, CACHED, FRESH
from evenorm.bench.summary import Summary
from evenorm.bench.table import Table, times

__all__ = ["AIMS", "GPU_AIMS", "Aim", "Figure", "tables"]


class Figure(NamedTuple):
    """What a run measured; and the worst row, where not the mean alone but each row is to reach the bound."""

    value: float
    worst: float | None = None


Measured = Callable[[Run, Summary], Figure | None]
"""Reads a figure from a run that has it."""


@dataclass(frozen=True)
class Aim:
    """A figure, and what it is to be at least, more than, or at most."""

    what: str
    sense: Literal["≥", ">", "≤"]
    bound: float
    measured: Measured
    form: Callable[[float], str] = times

    def verdict(self, figure: Figure) -> str:
        """Whether a figure reaches the bound. A result that is wrong does not."""
        if not self._reached(figure.value):
            return "not met"
        return "met" if figure.worst is None or self._reached(figure.worst) else "on average"

    def _reached(self, value: float) -> bool:
        if self.sense == ">":
            return value > self.bound
        return value >= self.bound if self.sense == "≥" else value <= self.bound


def tables(run: Run, summary: Summary) -> Iterator[Table]:
    """One table, where a run measured anything of it."""
    aims, said = AIMS, _SAID
    if any(row.memory == CACHED for row in run.rows):
        aims, said = GPU_AIMS, _SAID_OF_A_GPU
    found = [(aim, figure) for aim in aims if (figure := aim.measured(run, summary)) is not None]
    tried = any(command.quick for command in run.commands)
    if not found or tried:
        return
    missing = len(aims) - len(found)
    yield Table(
        "Aims",
        f"{said} Geometric means, and in parentheses the worst row where each row is to reach the aim. Both is "
        "forward + backward." + (f" {missing} of {len(aims)} aims were not measured." if missing else ""),
        ("", "aim", "measured", ""),
        [
            (aim.what, f"{aim.sense} {aim.form(aim.bound)}", _said(aim, figure), aim.verdict(figure))
            for aim, figure in found
        ],
    )


_SAID = (
    "Times as fast as others; rows slower than torch by more than 10 % or 3 µs; shares of the speed of copy_ in "
    "reused memory beyond the cache; our time over others where layers are fused."
)
_SAID_OF_A_GPU = (
    "Shares of the speed of copy_, of tensors beyond 64 MB; times as fast as others; what a call of a small tensor "
    "takes longer than torch's; our memory of a step over torch's."
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


def _beyond(direction: str, run: Run, summary: Summary) -> Figure | None:
    rows = [row for row in run.rows if row.suite == "layers" and row.direction == direction and row.bytes > BEYOND]
    return _least(row.share_of(COPY) for row in rows)


def _compiled(run: Run, summary: Summary) -> Figure | None:
    """The worst row's alone."""
    found = _least(row.ratio("compile") for row in run.rows)
    return None if found is None or found.worst is None else Figure(found.worst)


def _compiled_mean(run: Run, summary: Summary) -> Figure | None:
    found = _least(row.ratio("compile") for row in run.rows)
    return None if found is None else Figure(found.value)


def _small_calls(run: Run, summary: Summary) -> Figure | None:
    timings = [row.timings["torch"] for row in run.rows if not row.large and "torch" in row.timings]
    longer = [timing.excess.value for timing in timings if timing.excess is not None]
    return Figure(max(longer)) if longer else None


def _off_path(run: Run, summary: Summary) -> Figure | None:
    return _least(row.ratio("torch") for row in run.rows if _is_off_path(row))


def _is_off_path(row: Row) -> bool:
    """Where torch has no fast kernel on a GPU."""
    channels_last = row.size.endswith(" cl")
    return (
        "weight" in row.title
        or "masked" in row.title
        or (row.layer in ("LayerNorm2d", "RMSNorm2d") and not channels_last)
        or (row.layer.startswith(("GroupNorm", "InstanceNorm")) and channels_last)
        or (row.layer.startswith("BatchNorm") and row.suite.startswith("fused ") and row.training)
    )


def _memory(run: Run, summary: Summary) -> Figure | None:
    """The most, over what torch's layers hold."""
    rows = [row for row in run.rows if (row.suite, row.direction) == ("fused norm+add+relu", "both")]
    peaks = [(row.ours.peak, row.timings["torch"].peak) for row in rows if "torch" in row.timings]
    found = [mine / theirs for mine, theirs in peaks if mine is not None and theirs]
    return Figure(max(found)) if found else None


def _least(values: Iterable[float | None]) -> Figure | None:
    found = [value for value in values if value is not None]
    return Figure(geometric_mean(found), min(found)) if found else None


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs"


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

GPU_AIMS = (
    Aim("share of copy_, forward", "≥", 0.90, partial(_beyond, "forward"), _percent),
    Aim("share of copy_, backward", "≥", 0.90, partial(_beyond, "backward"), _percent),
    Aim("every row, torch.compile", "≥", 0.97, _compiled),
    Aim("all rows, torch.compile", ">", 1.0, _compiled_mean),
    Aim("small calls longer than torch's by", "≤", 10e-6, _small_calls, _microseconds),
    Aim("where torch has no fast kernel, torch", "≥", 2.0, _off_path),
    Aim("memory of norm+add+relu over torch's", "≤", 1.0, _memory),
)

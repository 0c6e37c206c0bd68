"""What a run states in tables: ratios of fused rows, scaling, aims; none is lost by a name that changed."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from evenorm.bench import aims, ceiling, fusion, measure, models, plot, saved, scaling, session, suites, terminal
from evenorm.bench.case import Case, Data
from evenorm.bench.peers import ALONE, OURS, SEPARATE, build
from evenorm.bench.peers.threads import one, single
from evenorm.bench.roof import COPY, STREAM, copies
from evenorm.bench.row import Descent, Row, Timing
from evenorm.bench.run import Command, Run
from evenorm.bench.saved import Bytes, Saved
from evenorm.bench.statements import statements
from evenorm.bench.summary import summarize
from rows import row_of, run_of

MEMORY = (suites.FRESH, suites.REUSED)


NAMES = {"alone": ALONE, "ours": OURS, "ours1": one(OURS), "torch1": one("torch"), "copy": COPY, "copy1": one(COPY)}
BASE = row_of(1.0, 2.0)


def timed(seconds: Mapping[str, float], **changes: object) -> Row:
    """A row of these times, by the variants' names or short ones."""
    timings = _timings(frozenset((NAMES.get(name, name), value) for name, value in seconds.items()))
    return replace(BASE, timings=dict(timings), **changes)  # type: ignore[arg-type]


@cache
def _timings(seconds: frozenset[tuple[str, float]]) -> Mapping[str, Timing]:
    return measure.timings({name: np.full(5, value) for name, value in seconds})


def whole() -> Run:
    """A run with every row that `evenorm bench` has, each of the same times."""
    plans = session.chosen(suites.SUITES, MEMORY, ("torch", "compile", "jax"), re.compile(""), False)
    run = run_of()
    for plan in plans:
        names = {**dict.fromkeys(plan.variants, 2.0), OURS: 1.0, COPY: 0.5, STREAM: 0.5, one(COPY): 0.9}
        for direction in plan.directions:
            row = timed(names, suite=plan.suite, direction=direction, memory=plan.memory, sweeps=plan.case.sweeps)
            row.suite += f" {plan.case.what}" * plan.case.fuses
            case = plan.case
            named = replace(row, title=case.title, size=case.size, network=case.network, layer=case.layer)
            run.take(replace(named, dtype=case.dtype, copies=copies(case, direction)))
    for network in models.MODELS:
        row = row_of(1.0, 2.0, suite="models", network=network, size=network, direction="training")
        row.ours.error = 1e-6
        run.take(replace(row, descent=Descent(10, 1e-6, 2.5, 2.25)))
    for case in saved.cases():
        run.count(Saved(case.layer, case.what, case.size, case.dtype, 8, Bytes(8, 1), Bytes(16, 1)))
    return run


def drawn(run: Run) -> str:
    console = Console(width=terminal.WIDTH, highlight=False, file=StringIO())
    console.print(terminal.closing(run, summarize(run)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


# Fused rows.


def test_ratios_of_fused_rows_are_means_with_the_worst_row() -> None:
    rows = [
        timed({"ours": 1.0, "alone": 1.0, "separate": 2.0, "torch": 4.0}, suite="fused norm+relu"),
        timed({"ours": 4.0, "alone": 1.0, "separate": 2.0, "torch": 4.0}, suite="fused norm+relu", size="1×1"),
        timed({"ours": 9.0, "alone": 1.0}, suite="fused norm+relu", size="2×2", elements=10),
        timed({"ours": 9.0, "alone": 1.0}, suite="layers"),
    ]
    (found,) = summarize(run_of(*rows)).fusions
    assert (found.what, found.dtype, found.direction, found.memory, found.rows) == (
        *("norm+relu", "float32", "both", "fresh", 2),
    )
    assert [found.over[name].mean for name in (ALONE, SEPARATE, "torch")] == pytest.approx([2.0, 1.0, 0.5])
    assert [found.over[name].worst for name in (ALONE, SEPARATE, "torch")] == [4.0, 2.0, 1.0]
    (table,) = fusion.tables([found])
    assert table.lines == [("norm+relu float32 fresh both", "2", "2.00 (4.00)", "1.00 (2.00)", "0.50 (1.00)")]


# Threads.


def test_scaling_is_one_thread_s_time_over_that_of_all() -> None:
    row = timed(
        {"ours": 1.0, "torch": 4.0, "ours1": 1.8, "torch1": 6.0, "copy": 1.0, "copy1": 1.2}, suite=scaling.SUITE
    )
    summary = summarize(run_of(row))
    (found,) = summary.scalings
    assert (found.ours.value, found.torch, found.copy) == pytest.approx((1.8, 1.5, 1.2))
    (table,) = scaling.tables([found], "2")
    assert table.title == "From 1 thread to 2"
    assert table.lines == [("BatchNorm2d 8×8 fresh both", "1.80× [1.80, 1.80]", "1.50×", "1.20×")]
    # The same layers stand in the suite ``layers``, where they are judged.
    assert not summary.means
    assert not summary.compared
    assert aimed(run_of(row)) == {}


def test_a_single_variant_has_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert single(torch.get_num_threads)() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            single(lambda: 1 / 0)()
        assert torch.get_num_threads() == 2
        case = Case("", "LayerNorm", (4, 32))
        data = Data.of(case)
        for name in (OURS, "torch"):
            found, expected = (build(variant, case, data).outputs() for variant in (one(name), name))
            assert found.keys() == expected.keys()
    finally:
        torch.set_num_threads(before)


def test_rows_of_threads_are_gated_and_timed_beside_a_copy_on_one_thread() -> None:
    plan = measure.Plan(
        scaling.SUITE, Case("", "LayerNorm", (4, 32)), ("both",), suites.FRESH, (OURS, "torch", one(OURS), one("torch"))
    )
    (row,) = measure.measure(plan, 0.0)
    assert list(row.timings) == [OURS, "torch", one(OURS), one("torch"), COPY, STREAM, one(COPY)]
    assert all(row.timings[name].error is not None for name in plan.variants)
    assert list(row.peers()) == ["torch", one(OURS), one("torch")]


def test_threads_has_every_layout() -> None:
    plans = session.chosen([scaling.SUITE], MEMORY, ("torch", "jax"), re.compile(""), False)
    cases = [plan.case for plan in plans]
    assert {case.layer for case in cases} >= {"BatchNorm2d", "BatchNorm1d", "LayerNorm", "RMSNorm", "GroupNorm"}
    for layer in ("BatchNorm2d", "GroupNorm"):
        assert {case.channels_last for case in cases if case.layer == layer} == {False, True}
    assert {plan.variants for plan in plans} == {(OURS, "torch", one(OURS), one("torch"))}


# The ceiling.
def test_what_can_be_gained_is_torchs_time_over_a_copys() -> None:
    """Torch takes 2 where a copy takes 0.5: four times for one copy, 1.6 times for two and a half."""
    run = run_of()
    for direction, moved in (("forward", 1.0), ("both", 2.5)):
        row = timed({"ours": 1.0, "torch": 2.0, "copy": 0.5}, suite="layers", direction=direction)
        run.take(replace(row, copies=moved, elements=200_000))
    (table,) = ceiling.tables(run)
    assert [row[2:] for row in table.lines] == [("4.00×", "2.00×"), ("1.60×", "2.00×")]
    small = run_of()
    small.take(replace(timed({"ours": 1.0, "torch": 2.0, "copy": 0.5}, suite="layers"), elements=10))
    assert not list(ceiling.tables(small))


# Aims.


def test_every_aim_is_measured_by_a_whole_run() -> None:
    run = whole()
    summary = summarize(run)
    assert [aim.what for aim in aims.AIMS if aim.measured(run, summary) is None] == []
    assert len({aim.what for aim in aims.AIMS}) == len(aims.AIMS)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (aims.Figure(1.1), "met"),
        (aims.Figure(1.11), "not met"),
        (aims.Figure(1.05, 1.1), "met"),
        (aims.Figure(1.05, 1.2), "on average"),
        (aims.Figure(1.2, 1.3), "not met"),
        (aims.Figure(float("nan")), "not met"),
    ],
)
def test_an_aim_is_met_or_not(figure: aims.Figure, verdict: str) -> None:
    aim = aims.Aim("norm+relu", "≤", 1.1, lambda run, summary: figure)
    assert aim.verdict(figure) == verdict


def aimed(run: Run) -> dict[str, tuple[str, ...]]:
    tables = list(aims.tables(run, summarize(run)))
    return {line[0]: line[1:] for table in tables for line in table.lines}


def test_aims_stand_beside_what_was_measured() -> None:
    found = aimed(whole())
    assert found["layers float32 both, torch"] == ("≥ 5.00×", "2.00×", "not met")
    assert found["share of copy_, forward"] == ("≥ 80%", "50% (50%)", "not met")
    assert found["share of copy_, backward in 2 sweeps"] == ("≥ 42%", "75% (75%)", "met")
    assert found["norm+add+relu over not fused, both"] == ("≤ 0.60×", "0.50× (0.50×)", "met")
    assert found["ResNet-50 training step, torch"] == ("≥ 1.12×", "2.00×", "met")
    assert found["ResNet-50 losses, off torch's by"] == ("≤ 1e-04", "1e-06", "met")
    assert found["rows slower than torch"] == ("≤ 0", "0", "met")
    assert found["the same, a residual after the norm"] == ("≥ 1", "1", "met")


def test_what_misses_an_aim_is_shown() -> None:
    slow = row_of(1.0, 0.5)
    lost = row_of(1.0, 2.0, suite="models", network="ResNet-50", direction="training")
    lost.timings[OURS].seconds, lost.timings["torch"].ratio, lost.ours.error = None, None, 0.5
    run = run_of(slow, lost)
    run.count(Saved("LayerNorm", "norm+silu", "8×8", "float32", 8, Bytes(16, 0), Bytes(8, 0)))
    assert aimed(run) == {
        "layers float32 both, torch": ("≥ 5.00×", "0.50×", "not met"),
        "rows slower than torch": ("≤ 0", "1", "not met"),
        "ResNet-50 training step, torch": ("≥ 1.12×", "wrong", "not met"),
        "ResNet-50 losses, off torch's by": ("≤ 1e-04", "5e-01", "not met"),
        "cases that save more than torch's layers": ("≤ 0", "1", "not met"),
        "SiLU, GELU, Hardswish save fewer tensors by": ("≥ 1", "-1", "not met"),
    }


def of_a_gpu() -> Run:
    """A run with every row that `evenorm bench --device cuda` has, each of the same times and bytes."""
    run = run_of()
    for plan in session.chosen(("layers", "fused"), [suites.CACHED], ("torch", "compile"), re.compile(""), False):
        case = plan.case
        for direction in plan.directions:
            seconds = copies(case, direction) / 0.95
            names = {**dict.fromkeys(plan.variants, 2 * seconds), OURS: seconds, COPY: 1.0}
            row = timed(names, suite=plan.suite, direction=direction, memory=plan.memory, elements=case.elements)
            row.suite += f" {case.what}" * case.fuses
            row.timings["torch"].peak = row.ours.peak = 10
            named = replace(row, title=case.title, size=case.size, network=case.network, layer=case.layer)
            sized = replace(named, bytes=case.bytes, training=case.training, copies=copies(case, direction))
            run.take(replace(sized, timings={name: replace(timing) for name, timing in row.timings.items()}))
    return run


def test_a_gpu_has_aims_of_its_own() -> None:
    run = of_a_gpu()
    assert all(aim.measured(run, summarize(run)) is not None for aim in aims.GPU_AIMS)
    assert aimed(run) == {
        "share of copy_, forward": ("≥ 90%", "95% (95%)", "met"),
        "share of copy_, backward": ("≥ 90%", "95% (95%)", "met"),
        "every row, torch.compile": ("≥ 0.97×", "2.00×", "met"),
        "all rows, torch.compile": ("> 1.00×", "2.00×", "met"),
        "small calls longer than torch's by": ("≤ 10.0 µs", "-1052631.6 µs", "met"),
        "where torch has no fast kernel, torch": ("≥ 2.00×", "2.00× (2.00×)", "met"),
        "memory of norm+add+relu over torch's": ("≤ 1.00×", "1.00×", "met"),
    }


def first(run: Run, **wanted: object) -> Row:
    return next(row for row in run.rows if all(getattr(row, name) == value for name, value in wanted.items()))


def test_one_row_of_a_gpu_misses_an_aim() -> None:
    run = of_a_gpu()
    for wanted, peer, ratio in (
        ({"layer": "LayerNorm", "direction": "both"}, "compile", 0.9),
        ({"layer": "LayerNorm2d", "direction": "both"}, "torch", 1.5),
    ):
        timing = first(run, **wanted).timings[peer]
        assert timing.ratio is not None
        timing.ratio = timing.ratio._replace(value=ratio)
    small = next(row.timings["torch"] for row in run.rows if not row.large)
    assert small.excess is not None
    small.excess = small.excess._replace(value=11e-6)
    first(run, suite="fused norm+add+relu", direction="both").ours.peak = 11
    large = next(row for row in run.rows if row.direction == "backward" and row.suite == "layers")
    assert large.ours.seconds is not None
    large.ours.seconds = large.ours.seconds._replace(value=large.copies / 0.8)
    found = aimed(run)
    assert found["share of copy_, forward"][2] == "met"
    assert found["share of copy_, backward"] == ("≥ 90%", "95% (80%)", "on average")
    assert found["every row, torch.compile"] == ("≥ 0.97×", "0.90×", "not met")
    assert found["all rows, torch.compile"][2] == "met"
    assert found["small calls longer than torch's by"] == ("≤ 10.0 µs", "11.0 µs", "not met")
    assert found["where torch has no fast kernel, torch"] == ("≥ 2.00×", "2.00× (1.50×)", "not met")
    assert found["memory of norm+add+relu over torch's"] == ("≤ 1.00×", "1.10×", "not met")


def test_tiny_tensors_are_not_judged() -> None:
    run = whole()
    run.begin(Command("evenorm bench models --quick", "2026-01-02", "0.5"))
    assert aimed(run) == {}


def test_a_run_without_figures_of_aims_states_none() -> None:
    assert list(statements(run_of(), summarize(run_of()))) == []


# Drawn.


def test_statements_fit_80_columns_and_the_aims_are_last() -> None:
    printed = drawn(whole())
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed.partition("Fused: our time over …")[2].replace("… the norm alone", "")
    titles = [
        "Fused: our time",
        "From 1 thread to 2",
        "Saved for backward, float32",
        "What can be gained over torch",
        "Aims\n",
    ]
    assert sorted(titles, key=printed.index) == titles


def test_a_training_step_says_at_which_rate_its_losses_are_torch_s() -> None:
    row = row_of(1.0, 2.0, suite="models", descent=Descent(10, 1e-7, 2.5, 2.25))
    said = str(terminal.line(replace(row, direction="training")))
    assert "with torch's losses: rate 1e-07, loss 2.5 → 2.25 in 10 steps" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_page_states_the_same() -> None:
    run = whole()
    page = plot.page(run)
    for table in statements(run, summarize(run)):
        assert f"<h2>{table.title.replace('&', '&amp;')}</h2>" in page
        assert all(f"<td>{line[1].replace('<', '&lt;')}</td>" in page for line in table.lines)

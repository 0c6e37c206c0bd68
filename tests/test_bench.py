"""The benchmark: it must not flatter, so most of this shows what it refuses."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenorm.bench import measure, session, suites, terminal
from evenorm.bench.case import Case, Data
from evenorm.bench.interval import Interval, Median
from evenorm.bench.peers import OURS, OURS_COMPILED, Outputs, module
from evenorm.bench.roof import COPY, STREAM, copies
from evenorm.bench.stopwatch import interleave
from evenorm.bench.summary import summarize
from rows import row_of, run_of

ALL = ("torch", "compile", "jax", "onnxruntime")
BATCH = Case("", "BatchNorm2d", (4, 8, 3, 5))
FLAT = Case("", "BatchNorm1d", (16, 8))
LAYER = Case("", "LayerNorm", (3, 4, 32))


# Measuring.


def test_variants_take_turns_and_begin_in_turn() -> None:
    order: list[str] = []
    samples = interleave({name: partial(order.append, name) for name in "abc"}, 0.0)
    assert {len(taken) for taken in samples.values()} == {5}
    changes = [name for k, name in enumerate(order) if k == 0 or order[k - 1] != name]
    assert "".join(changes).endswith("abcbcacababcbca"[3:])


def test_intervals_are_paired() -> None:
    # Rounds differ by tens of percent, the ratio within a round by nothing.
    noise = np.random.default_rng(0).uniform(1, 2, size=21)
    found = Median.of(3 * noise).over(Median.of(noise))
    assert found == pytest.approx((3, 3, 3))
    lone = Median.of(noise).interval
    assert lone.low < lone.value < lone.high


class _Wrong(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 1.01


def test_a_row_that_is_wrong_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BATCH
    monkeypatch.setitem(module.VARIANTS, OURS, lambda case, data: module.Called(_Wrong(case.shape[1]), data))
    plan = measure.Plan("layers", case, ("forward", "both"), suites.FRESH, (OURS, "torch"))
    for row in measure.measure(plan, 0.0):
        assert row.seconds() is None
        assert row.seconds("torch") is None
        assert "wrong" in str(terminal.line(row))
        assert not re.search(r"[µm]s", str(terminal.line(row)))
        assert summarize(run_of(row)).wrong == [row]


def test_a_peer_that_is_wrong_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BATCH
    monkeypatch.setitem(module.VARIANTS, "torch", lambda case, data: module.Called(_Wrong(case.shape[1]), data))
    plan = measure.Plan("layers", case, ("both",), suites.FRESH, (OURS, "torch"))
    (row,) = measure.measure(plan, 0.0)
    assert row.seconds() is not None
    assert row.ratio("torch") is None
    assert "y" in (row.timings["torch"].absent or "")


def test_every_pass_is_timed_beside_both_roofs() -> None:
    plan = measure.Plan("layers", LAYER, ("forward", "backward", "both"), suites.FRESH, (OURS, "torch"))
    rows = list(measure.measure(plan, 0.0))
    assert [row.direction for row in rows] == ["forward", "backward", "both"]
    for row in rows:
        assert list(row.timings) == [OURS, "torch", COPY, STREAM]
        assert row.ratio("torch") == pytest.approx((row.seconds("torch") or 0) / (row.seconds() or 1))
        assert row.copies == copies(LAYER, row.direction)
        assert row.share_of(COPY) == pytest.approx((row.seconds(COPY) or 0) * row.copies / (row.seconds() or 1))


def test_gradients_are_cleared_between_calls() -> None:
    data = Data.of(BATCH)
    variant = module.VARIANTS["torch"](BATCH, data)
    for direction in ("both", "backward"):
        call = variant.call(direction)
        call()
        assert all(leaf.grad is None for leaf in variant.leaves)


def test_reused_memory_faults_no_pages() -> None:
    script = (
        "import resource, torch\n"
        "from evenorm.bench import allocator\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill():\n"
        "    before = faults(); torch.zeros(1 << 26, dtype=torch.uint8); return faults() - before\n"
        "fill(); fresh = fill(); allocator.keep_pages(); fill(); fill(); print(fresh, fill())\n"
    )
    if sys.platform != "linux":
        pytest.skip("mallopt is glibc's")
    fresh, reused = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    # Huge pages make one fault of 512.
    assert int(fresh) >= (1 << 26) >> 21
    assert int(reused) < int(fresh) // 4 + 4


# Rows and their judgment.


@pytest.mark.parametrize(
    ("ours", "theirs", "spread", "slower"),
    [
        (1.2e-3, 1.0e-3, 0.0, True),
        (1.05e-3, 1.0e-3, 0.0, False),
        (1.0e-3, 1.2e-3, 0.0, False),
        # 2 µs of 4 are less than 3 µs, 4 µs of 4 are more.
        (6e-6, 4e-6, 0.0, False),
        (8e-6, 4e-6, 0.0, True),
        # The interval reaches below the limit.
        (1.2e-3, 1.0e-3, 0.5, False),
    ],
)
def test_slower_is_judged_by_the_interval(ours: float, theirs: float, spread: float, slower: bool) -> None:
    assert row_of(ours, theirs, spread).slower is slower


def test_means_are_of_large_rows() -> None:
    run = run_of(row_of(1.0, 2.0), row_of(1.0, 8.0), row_of(1.0, 1000.0, elements=1000))
    (means,) = summarize(run).means.values()
    assert means["torch"].rows == 2
    assert means["torch"].value == pytest.approx(4.0)


def test_shares_are_of_reused_memory_beyond_the_cache() -> None:
    beyond = row_of(1.0, 2.0, memory="reused")
    run = run_of(row_of(1.0, 2.0), replace(beyond, sweeps=2), beyond, replace(beyond, cached=True, copies=1.0))
    shares = summarize(run).shares
    assert [(share.sweeps, share.roof, share.rows) for share in shares] == [
        (1, COPY, 1),
        (1, STREAM, 1),
        (2, COPY, 1),
        (2, STREAM, 1),
    ]
    assert [share.mean for share in shares] == pytest.approx([0.5, 0.25] * 2)


def test_a_gpu_has_one_roof() -> None:
    row = row_of(1.0, 2.0, memory="cached")
    del row.timings[STREAM]
    (share,) = summarize(run_of(row)).shares
    assert share.roof == COPY
    assert share.mean == pytest.approx(0.5)


# The suites.


def every_plan() -> list[measure.Plan]:
    return session.chosen(suites.SUITES, (suites.FRESH, suites.REUSED), ALL, re.compile(""), False)


def test_fresh_memory_comes_first() -> None:
    memory = [plan.memory for plan in every_plan()]
    assert memory == sorted(memory)
    assert set(memory) == {"fresh", "reused"}


def test_layers_has_the_shapes_that_count() -> None:
    cases = [plan.case for plan in every_plan() if plan.suite == "layers"]
    for network in ("ResNet-50", "MobileNetV2", "EfficientNet-B0", "ConvNeXt-T", "U-Net", "ViT-B", "GPT-2", "Llama"):
        assert {case.dtype for case in cases if case.network == network} == {"float32", "bfloat16"}
    assert {case.channels_last for case in cases if case.layer == "GroupNorm"} == {False, True}
    assert {case.training for case in cases if case.layer == "BatchNorm2d"} == {False, True}
    assert {len(case.shape) for case in cases if case.layer == "BatchNorm1d"} == {2, 3}
    assert {case.shape[-1] for case in cases if case.layer == "RMSNorm"} >= {3, 4096, 8192, 50_257}


def test_layers_takes_its_time_and_no_more() -> None:
    rows = sum(len(plan.directions) for plan in every_plan() if plan.suite == "layers")
    # A second for each, and what building and gating costs, in 15 minutes.
    assert rows < 400
    # Seconds each.
    variants = [plan.variants for plan in every_plan() if plan.suite == "layers"]
    assert sum("compile" in names for names in variants) < 60
    assert sum(OURS_COMPILED in names for names in variants) < 30


def test_ours_is_compiled_beside_theirs_for_every_network() -> None:
    plans = [plan for plan in every_plan() if "compile" in plan.variants]
    assert {(plan.case.network, plan.case.layer) for plan in plans} == {
        (plan.case.network, plan.case.layer) for plan in plans if OURS_COMPILED in plan.variants
    }


def test_no_two_rows_are_one() -> None:
    keys = [(plan.suite, plan.case.title, plan.case.network, plan.case.size, plan.memory) for plan in every_plan()]
    assert len(keys) == len(set(keys))


def test_a_suite_that_is_late_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [
        measure.Plan(suite, replace(LAYER, shape=(n, 8)), ("forward", "both"), suites.FRESH, (OURS,))
        for suite in ("layers", "fused")
        for n in (2, 3, 4)
    ]
    monkeypatch.setattr(session, "LIMITS", {"layers": 0.0})
    notes: list[str] = []
    rows = list(session.play(plans, 0.0, notes))
    assert [row.suite for row in rows] == ["layers"] * 2 + ["fused"] * 6
    assert notes == ["4 rows of layers in fresh memory are left out: its 0 minutes were over; see --only"]


def test_titles_stand_together() -> None:
    groups = [(plan.suite, plan.case.title, plan.memory) for plan in every_plan()]
    starts = [group for k, group in enumerate(groups) if k == 0 or groups[k - 1] != group]
    assert len(starts) == len(set(starts))


def test_a_variant_that_raises_is_one_row_s_news(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def outputs(self) -> Outputs:
            raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(module.VARIANTS, "compile", lambda case, data: Broken())
    plan = measure.Plan("layers", FLAT, ("both",), suites.FRESH, (OURS, "compile"))
    (row,) = measure.measure(plan, 0.0)
    assert row.timings["compile"].absent == "RuntimeError: out of luck"
    assert isinstance(row.ours.seconds, Interval)


# Whole steps.


@pytest.mark.parametrize("name", ["ResNet-50", "Llama 512"])
def test_models_are_timed_with_equal_losses(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is in the extra evenorm[bench]")
    from evenorm.bench import models
    from evenorm.surgery import accelerate

    for row in models.measure(name, accelerate, 0.0, quick=True):
        assert row.ratio("torch") is not None
        assert row.ours.share is not None
        assert row.ours.share <= 1


def test_models_whose_losses_differ_have_no_speed() -> None:
    pytest.importorskip("transformers", reason="transformers is in the extra evenorm[bench]")
    from evenorm.bench import models

    def spoil(model: nn.Module, _: Mapping[str, Tensor]) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        return model

    for row in models.measure("Llama 512", spoil, 0.0, quick=True):
        assert row.seconds() is None
        assert "wrong" in str(terminal.line(row))

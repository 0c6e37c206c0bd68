"""The benchmark's gate: what passes it, and that nothing wrong does."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from evenorm.bench import expected, gate
from evenorm.bench.activation import ACTIVATIONS
from evenorm.bench.case import Case, Data
from evenorm.bench.peers import OURS, build, module

CASES = [
    Case("", "BatchNorm2d", (4, 8, 3, 5)),
    Case("", "BatchNorm2d", (4, 8, 3, 5), channels_last=True, training=False),
    Case("", "BatchNorm1d", (16, 8)),
    Case("", "LayerNorm", (3, 4, 32)),
    Case("", "LayerNorm2d", (3, 8, 4, 4), channels_last=True),
    Case("", "RMSNorm", (6, 32)),
    Case("", "GroupNorm", (2, 8, 4, 4), groups=4),
    Case("", "InstanceNorm2d", (2, 8, 4, 4)),
]
CASES += [replace(case, dtype="bfloat16") for case in CASES]


def case_id(case: Case) -> str:
    return f"{case.title} {case.size}"


@pytest.mark.parametrize("name", [OURS, "torch"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_gate_lets_right_results_pass(case: Case, name: str) -> None:
    data = Data.of(case)
    verdict = gate.check(case, data, {name: build(name, case, data).outputs()})[name]
    assert verdict.fault is None
    assert {"y", "dx", "dweight"} <= verdict.errors.keys()


@pytest.mark.parametrize("damage", ["zeros", "nan", "one element", "shifted"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_gate_stops_every_wrong_output(case: Case, damage: str) -> None:
    data = Data.of(case)
    right = build("torch", case, data).outputs()
    for output in right:
        wrong = torch.as_tensor(right[output]).detach().clone(memory_format=torch.contiguous_format)
        if damage == "zeros":
            wrong.zero_()
        elif damage == "shifted":
            wrong += wrong.abs().max() / 4
        else:
            wrong.view(-1)[wrong.numel() // 2] += torch.nan if damage == "nan" else 3 * wrong.abs().max()
        verdicts = gate.check(case, data, {OURS: {**right, output: wrong}, "torch": {**right, output: wrong}})
        for verdict in verdicts.values():
            assert verdict.fault is not None
            assert output in verdict.fault


@pytest.mark.parametrize("case", CASES[:8], ids=case_id)
def test_slices_change_no_verdict(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data.of(case)
    outputs = {"torch": build("torch", case, data).outputs()}
    whole = gate.check(case, data, outputs)["torch"]
    monkeypatch.setattr(expected, "_SLICE", 1)
    cut = gate.check(case, data, outputs)["torch"]
    assert cut.errors == pytest.approx(whole.errors, rel=1e-6, abs=1e-12)


FUSED = [
    Case("", "BatchNorm2d", (8, 4, 16, 16), activation=activation, residual=residual)
    for activation in sorted(ACTIVATIONS)
    for residual in (None, "after")
]
FUSED += [
    Case("", "BatchNorm2d", (8, 4, 16, 16), residual="after"),
    Case("", "GroupNorm", (2, 64, 8, 8), channels_last=True, activation="silu"),
    Case("", "LayerNorm", (8, 64), residual="before"),
    Case("", "RMSNorm", (8, 64), residual="before"),
]
FUSED += [replace(case, dtype="bfloat16") for case in FUSED]


# Ours in half precision is the business of the tests of epilogues; here the reference's bounds are tested.
@pytest.mark.parametrize("name", ["torch", "separate"])
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_the_gate_knows_epilogues(case: Case, name: str) -> None:
    data = Data.of(case)
    expected.avoid_kinks(case, data)
    right = build(name, case, data).outputs()
    verdict = gate.check(case, data, {name: right})[name]
    assert verdict.fault is None
    assert ("sum" in verdict.errors) is (case.residual == "before")
    assert ("dresidual" in verdict.errors) is (case.residual is not None)
    bare = build("norm alone", case, data).outputs()
    assert gate.check(case, data, {name: {**right, **bare}})[name].fault is not None


@pytest.mark.parametrize("case", [*CASES[:9], FUSED[1], *FUSED[-2:]], ids=case_id)
def test_jax_computes_the_same(case: Case) -> None:
    pytest.importorskip("jax", reason="jax is in the extra evenorm[bench]")
    data = Data.of(case)
    verdict = gate.check(case, data, {"jax": build("jax", case, data).outputs()})["jax"]
    assert verdict.fault is None
    assert {"y", "dx", "dweight"} <= verdict.errors.keys()


@pytest.mark.parametrize(
    "case",
    [
        Case("", "BatchNorm2d", (4, 8, 3, 5), training=False),
        Case("", "LayerNorm", (3, 4, 32)),
        Case("", "RMSNorm", (6, 32)),
        Case("", "GroupNorm", (2, 8, 4, 4), groups=4),
        Case("", "InstanceNorm2d", (2, 8, 4, 4)),
    ],
    ids=case_id,
)
def test_onnxruntime_computes_the_same(case: Case) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra evenorm[bench]")
    data = Data.of(case)
    verdict = gate.check(case, data, {"onnxruntime": build("onnxruntime", case, data).outputs()})["onnxruntime"]
    assert verdict.fault is None
    assert verdict.errors.keys() == {"y without grad"}


@pytest.mark.parametrize("name", [OURS, "torch"])
def test_running_statistics_that_are_not_kept_up_are_wrong(name: str) -> None:
    case = CASES[0]
    data = Data.of(case)
    variant = module.VARIANTS[name](case, data)
    right = variant.outputs()
    assert {"running_mean", "running_var"} <= right.keys()
    forgetful = module.VARIANTS[name](case, data)
    layer: Any = forgetful.module
    layer.momentum = 0.0
    verdict = gate.check(case, data, {name: forgetful.outputs()})[name]
    assert "running_" in str(verdict.fault)

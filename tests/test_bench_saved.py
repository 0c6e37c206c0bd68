"""What autograd keeps for backward: never more than for torch's separate layers, counted for every case."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from evenorm.bench import saved
from evenorm.bench.case import Case
from evenorm.cli import app

# Torch keeps the input of these, and may keep the output of the others, which is as large.
CURVES = ("silu", "hardswish", "gelu", "gelu_tanh")

CASES = list(saved.cases())
CASES += [replace(case, channels_last=True) for case in CASES if len(case.shape) == 4]
CASES += [replace(case, training=False) for case in CASES if case.family == "BatchNorm"]


def case_id(case: Case) -> str:
    return f"{case.title} {case.size}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_more_is_kept_than_by_separate_layers(case: Case) -> None:
    found = saved.count(case)
    # Of a sum after the norm the slope is read from the output or from the residual.
    assert found.ours.large == case.bytes * (2 if case.residual == "after" and case.activation else 1)
    assert found.ours.large <= found.separate.large
    assert not found.more
    if case.activation in CURVES and case.residual != "after":
        assert found.ours.large <= found.separate.large - case.bytes
    # Statistics in float64, weight and bias.
    assert found.ours.small < found.separate.small + case.bytes / 50


def test_every_norm_activation_and_place_is_counted() -> None:
    counted = {(case.layer, case.activation, case.residual, case.dtype) for case in saved.cases()}
    assert len(counted) == len(list(saved.cases())) == 4 * 8 * 3 * 2


def test_a_storage_counts_once_and_whole() -> None:
    x = torch.ones(1000, requires_grad=True)
    assert saved.kept(lambda: x.sin() + x[:10].cos().sum(), 1000) == saved.Bytes(4000, 0)
    assert saved.kept(lambda: x.sin().sin(), 1000) == saved.Bytes(8000, 0)
    assert saved.kept(lambda: x.sin() * torch.ones(1), 1000) == saved.Bytes(4000, 4)


def test_more_is_found() -> None:
    found = saved.count(Case("", "LayerNorm", (4, 32)))
    assert replace(found, ours=saved.Bytes(2 * found.input, 0)).more


def test_the_command_counts() -> None:
    said = CliRunner().invoke(app, ["bench", "saved", "--only", "LayerNorm.*float32|RMSNorm.*silu"])
    assert said.exit_code == 0
    lines = said.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith(("norm+silu ", "add+norm+gelu "))] == [
        ["norm+silu", "1", "/", "2", "1", "/", "3"],
        ["add+norm+gelu", "1", "/", "2", "–"],
        ["norm+silu", "1", "/", "5"],
    ]

"""Statistics of several processes: one process on the concatenation, by number and by bit."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evenorm import BatchNorm2d, Frozen, Norm, PerDomain, Renorm, SyncBatchNorm, Synced
from evenorm.statistics.group import _names
from ranks import run_ranks

pytestmark = pytest.mark.dist

SHORT = (
    "is_one_process_on_the_concatenation",
    "activation_and_residual",
    "over_a_mask",
    "renormalized",
    "any_pattern",
    "far_from_zero",
    "one_value_each",
    "collectives_of_a_step",
    "derivatives_of_second_order",
    "recomputed_under_checkpointing",
    "in_half_precision",
    "any_split",
    "every_pair",
    "in_lockstep",
    "in_a_group_of_its_own",
    "in_distributed_data_parallel",
    "buffers_are_broadcast_between_two_forwards",
    "makes_more_layers_than_others",
    "skips_a_call",
)
LONG = (*SHORT[:-1], "every_composition", "compiled", "in_fully_sharded_data_parallel", "skips_a_call")


def test_two_processes() -> None:
    """The short form: every property that needs no compiler, in one start of two processes."""
    run_ranks(2, *SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_property(count: int) -> None:
    run_ranks(count, *LONG)


@pytest.mark.parametrize(
    ("fault", "count"),
    [
        ("dies", 2),
        *(
            pytest.param(fault, count, marks=pytest.mark.slow)
            for fault, count in (
                ("dies", 3),
                ("dies_before_the_backward_pass", 2),
                ("skips_a_call_of_another_size", 2),
                ("skips_a_call_of_another_size", 4),
            )
        ),
    ],
)
def test_no_rank_comes_through(fault: str, count: int) -> None:
    ended = run_ranks(count, fault, expect_failure=True, timeout=120)
    assert not any("came through" in e.said or "killed after" in e.said for e in ended)
    # 17 is the rank that dies; where packets differ in size, gloo ends those that expected the smaller one.
    assert {e.code for e in ended} <= {1, 17, -6}
    for one in ended:
        if one.code == 1:
            words = r"SyncBatchNorm\(.*\), number 1 \((for|back)ward, after [01] updates\)"
            assert re.search(rf"SyncError: (the ranks synchronize different things: .*)?{words}", one.said), one.said
        if one.code == -6:
            assert "size" in fault
            assert "gloo::EnforceNotMet" in one.said


def test_no_process_group() -> None:
    layer = SyncBatchNorm(3)
    with pytest.raises(RuntimeError, match=r"Synced: torch\.distributed is not initialized; call"):
        layer(torch.randn(4, 3))
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 0
    layer.eval()(torch.randn(4, 3))


def test_it_is_not_torchs() -> None:
    """DistributedDataParallel refuses torch's on CPUs, and converters would drop what composes."""
    for layer in (SyncBatchNorm(3), BatchNorm2d(3, statistics=Synced())):
        assert not isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    assert SyncBatchNorm(3).state_dict().keys() == torch.nn.SyncBatchNorm(3).state_dict().keys()
    assert "statistics=Synced()" in repr(SyncBatchNorm(3))
    assert "all processes together" in str(Norm("[n] c", c=3, statistics=Synced()).recipe)


def test_every_layer_has_a_number_of_its_own() -> None:
    """Copies too, which TransformerEncoder makes; layers of another kind do not count."""
    first = SyncBatchNorm(3)
    BatchNorm2d(3, statistics=Renorm()), SyncBatchNorm(4), BatchNorm2d(3)
    second = SyncBatchNorm(3)
    twins = [copy.deepcopy(first), pickle.loads(pickle.dumps(second))]
    assert len({layer.number for layer in (first, second, *twins)}) == 4
    names = [re.sub(r"\d+$", "", _names[layer.number]) for layer in (first, second)]
    assert names == ["SyncBatchNorm('[n] c [...]', 3), number "] * 2
    counted = [int(_names[layer.number].split()[-1]) for layer in (first, second, *twins)]
    assert counted == list(range(counted[0], counted[0] + 4))
    assert BatchNorm2d(3, statistics=Renorm()).number == 0


def test_what_is_synchronized_may_be_named_inside() -> None:
    domains = PerDomain({"a": Synced(), "b": Frozen()})
    layer: Any = SyncBatchNorm(3, statistics=domains)
    assert layer.chosen == domains
    with pytest.raises(
        ValueError, match=r"SyncBatchNorm: got process_group= beside .*give it to the Synced\(…\) inside"
    ):
        SyncBatchNorm(3, process_group="a group", statistics=domains)


@pytest.mark.slow
def test_the_example_under_torchrun() -> None:
    """As its docstring says, with two processes."""
    example = Path(__file__).parents[1] / "examples" / "distributed_train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    found = re.search(r"accuracy ([\d.]+) on new images, 2 processes", ended.stdout)
    assert found, ended.stdout
    assert float(found.group(1)) > 0.9

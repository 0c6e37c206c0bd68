"""Synchronized statistics are one process's on the concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import evenorm
from compositions import ALL, Composition, Part, Step, steps
from evenorm import BatchNorm1d, BatchNorm2d, Norm, Renorm, SyncBatchNorm, Synced
from rank_setting import (
    COUNT,
    RANK,
    SHARD,
    SIZES,
    assert_same_bits,
    check,
    close,
    compare,
    counting,
    numbers,
    seeded,
    summed,
)


@check
def is_one_process_on_the_concatenation() -> None:
    x, dy = numbers(sum(SIZES), 3, 2, 2), numbers(sum(SIZES), 3, 2, 2)
    for momentum in (0.1, None):
        compare(
            seeded(SyncBatchNorm(3, momentum=momentum).double()),
            seeded(BatchNorm2d(3, momentum=momentum).double()),
            x,
            dy,
        )


@check
def activation_and_residual() -> None:
    x, dy, residual = (numbers(sum(SIZES), 3, 2, 2) for _ in range(3))
    for activation in ("silu", "leaky_relu"):
        compare(
            seeded(SyncBatchNorm(3, activation=activation).double()),
            seeded(BatchNorm2d(3, activation=activation).double()),
            x,
            dy,
            residual=residual,
        )


@check
def over_a_mask() -> None:
    x, dy = numbers(sum(SIZES), 3, 6), numbers(sum(SIZES), 3, 6)
    lengths = torch.arange(sum(SIZES)) % 7
    compare(seeded(SyncBatchNorm(3).double()), seeded(BatchNorm1d(3).double()), x, dy, lengths=lengths)


@check
def renormalized() -> None:
    x, dy = numbers(sum(SIZES), 3), numbers(sum(SIZES), 3)
    settings: dict[str, Any] = {"r_max": 1.5, "d_max": 0.5, "schedule": None}
    compare(
        seeded(SyncBatchNorm(3, statistics=Renorm(**settings, of=Synced())).double()),
        seeded(BatchNorm1d(3, statistics=Renorm(**settings)).double()),
        x,
        dy,
    )


@check
def any_pattern() -> None:
    """Rows whose features lie on several ranks: RMS normalization under tensor parallelism."""
    x, dy = numbers(3, 4 * COUNT), numbers(3, 4 * COUNT)
    mine = slice(4 * RANK, 4 * RANK + 4)
    part, whole = x[:, mine].clone().requires_grad_(), x.clone().requires_grad_()
    layer = Norm("n [d]", centered=False, affine=None, statistics=Synced())
    y, expected = layer(part), evenorm.normalize(whole, "n [d]", centered=False)
    (dx,), (dx_whole,) = torch.autograd.grad(y, part, dy[:, mine]), torch.autograd.grad(expected, whole, dy)
    close(y, expected[:, mine])
    close(dx, dx_whole[:, mine])


@check
def far_from_zero() -> None:
    """Where Σx and Σx² gave a variance of 16 for 1.01."""
    torch.manual_seed(0)
    x = (torch.randn(64 * COUNT, 2, dtype=torch.float64) + 1e4).float()
    layer = SyncBatchNorm(2, momentum=1.0)
    layer(x[64 * RANK : 64 * RANK + 64])
    assert layer.running_var is not None
    close(layer.running_var.double(), x.double().var(0), 1e-6)


@check
def one_value_each() -> None:
    """Legal, if the whole has more; one in all is an error everywhere, and the history stays."""
    layer = SyncBatchNorm(3, affine=False, eps=0.0, momentum=1.0).double()
    x = torch.arange(COUNT, dtype=torch.float64)[:, None].expand(COUNT, 3).clone()
    y = layer(x[RANK : RANK + 1])
    close(y, ((x - x.mean(0)) / x.var(0, unbiased=False).sqrt())[RANK : RANK + 1])
    before = [b.clone() for b in layer.buffers()]
    with pytest.raises(ValueError, match="at least 2 values per statistic, got 1 in all"):
        layer(x[:1] if RANK == 0 else x[:0])
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@check
def in_half_precision() -> None:
    """Statistics are float64 whatever the input is, on an empty rank too."""
    x = numbers(sum(SIZES), 3).bfloat16()
    layer = SyncBatchNorm(3, dtype=torch.bfloat16, momentum=1.0)
    with counting() as sent:
        y = layer(x[SHARD])
    assert y.dtype == torch.bfloat16
    assert sent == [(8, torch.float64)]
    assert layer.running_var is not None
    close(layer.running_var, x.double().var(0).float(), 1e-6)


@check
def in_a_group_of_its_own() -> None:
    """Groups of one: each rank is alone, whatever the others hold."""
    groups = [dist.new_group([rank]) for rank in range(COUNT)]
    layer = SyncBatchNorm(3, process_group=groups[RANK]).double()
    x = numbers(4, 3)
    close(layer(x), BatchNorm1d(3).double()(x))
    if COUNT > 1:
        outsider = SyncBatchNorm(3, process_group=groups[(RANK + 1) % COUNT])
        with pytest.raises(RuntimeError, match="not in the process group"):
            outsider(torch.randn(4, 3))


@check
def makes_more_layers_than_others() -> None:
    """One rank makes layers of other sizes, groups or kinds first, and all in another order: no false alarm."""
    alone = dist.new_group([0])
    sizes = [5, 6]
    if RANK == 0:
        SyncBatchNorm(7), SyncBatchNorm(5, process_group=alone), BatchNorm1d(5, statistics=Renorm()), BatchNorm1d(5)
        sizes.reverse()
    layers = {size: SyncBatchNorm(size) for size in sizes}
    for size in (5, 6):
        torch.manual_seed(size)
        x, dy = numbers(sum(SIZES), size), numbers(sum(SIZES), size)
        compare(layers[size].double(), BatchNorm1d(size).double(), x, dy)


@check
def any_split() -> None:
    """One process on the concatenation, however it is split: nothing on some ranks, all on one."""
    splits = torch.Generator().manual_seed(0)
    for total in range(2, 14):
        cuts = [0, *torch.randint(0, total + 1, (COUNT - 1,), generator=splits).sort()[0].tolist(), total]
        torch.manual_seed(total)
        x, dy = numbers(total, 3, 2), numbers(total, 3, 2)
        shard = slice(cuts[RANK], cuts[RANK + 1])
        compare(seeded(SyncBatchNorm(3).double()), seeded(BatchNorm1d(3).double()), x, dy, shard)


def synced_is_whole(composition: Composition, masked: bool) -> None:
    """Two micro-batches on every rank are those of one process on the concatenation."""
    total = sum(SIZES)
    torch.manual_seed(total)
    mask = torch.rand(2 * total, 4) > 0.3
    given = Part(numbers(2 * total, 3, 4), numbers(2 * total, 3, 4), mask if masked else None)
    batches = [slice(0, total), slice(total, 2 * total)]
    shards = [slice(b.start + SHARD.start, b.start + SHARD.stop) for b in batches]
    # Exact, a window is one batch.
    whole = composition._replace(window="batch") if composition.window == "exact" else composition
    layer, alone = composition.layer(2, synced=True), whole.layer(2)
    found = steps(composition, layer, [given.at(shard) for shard in shards])
    if composition.window == "exact":
        (step,) = steps(whole, alone, [given])
        expected = [Step(step.y[b], step.dx[b]) for b in batches]
    else:
        expected = steps(whole, alone, [given.at(batch) for batch in batches])
    for mine, theirs in zip(found, expected, strict=True):
        close(mine.y, theirs.y[SHARD], 1e-11)
        close(mine.dx, theirs.dx[SHARD], 1e-11)
    for a, b in zip(layer.parameters(), alone.parameters(), strict=True):
        close(summed(a.grad), b.grad, 1e-10)
    kept = dict(layer.named_buffers())
    for name, theirs in alone.named_buffers():
        close(kept[name].double(), theirs.double(), 1e-11)
        assert_same_bits(kept[name])


WITHOUT_GHOSTS = [c for c in ALL if c.window != "ghost"]


@check
def every_pair() -> None:
    """Synchronizing under each average, window, correction, domain and mask; tests/test_pairs.py defines these."""
    for composition in WITHOUT_GHOSTS:
        beside = (composition.window != "batch") + composition.renormed + composition.domain
        for masked in (False, True):
            if beside + masked <= 1:
                synced_is_whole(composition, masked)


@check
def every_composition() -> None:
    for composition in WITHOUT_GHOSTS:
        for masked in (False, True):
            synced_is_whole(composition, masked)

"""One of several processes: its checks, by name. ``ranks.py`` starts it."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenorm
from evenorm import Accumulated, BatchNorm1d, BatchNorm2d, Norm, Renorm, SyncBatchNorm, Synced, SyncError

RANK, COUNT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
CHECKS: dict[str, Callable[[], None]] = {}
# Uneven, with one sample alone and with none.
SIZES = {2: (5, 1), 3: (4, 0, 3), 4: (7, 1, 0, 5)}[COUNT]
SHARD = slice(sum(SIZES[:RANK]), sum(SIZES[: RANK + 1]))


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * 2 + 3


def seeded(layer: Any) -> Any:
    """The same parameters on every rank, and not the initial ones."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2)
    return layer


def summed(value: Tensor) -> Tensor:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def assert_same_bits(value: Tensor) -> None:
    rows = [torch.empty_like(value) for _ in range(COUNT)]
    dist.all_gather(rows, value.detach().contiguous())
    assert all(torch.equal(row, rows[0]) for row in rows)


def compare(synced: Any, whole: Any, x: Tensor, dy: Tensor, **options: Tensor) -> None:
    """A step of this rank's shard is the shard of one process's step on everything."""
    torch.manual_seed(RANK)
    mine = {name: value[SHARD] for name, value in options.items()}
    part, everything = x[SHARD].clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = synced(part, **mine), whole(everything, **options)
    y.backward(dy[SHARD])
    expected.backward(dy)
    assert part.grad is not None
    assert everything.grad is not None
    close(y, expected[SHARD])
    close(part.grad, everything.grad[SHARD])
    for mine_, theirs in zip(synced.parameters(), whole.parameters(), strict=True):
        close(summed(mine_.grad), theirs.grad, 1e-11)
    for mine_, theirs in zip(synced.buffers(), whole.buffers(), strict=True):
        close(mine_.double(), theirs.double())
        assert_same_bits(mine_)


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


@contextmanager
def counting() -> Iterator[list[tuple[int, torch.dtype]]]:
    """Numbers and dtype of every collective."""
    sent: list[tuple[int, torch.dtype]] = []
    gather = collectives.all_gather_single

    def counted(packet: Tensor, *rest: Any) -> Tensor:
        sent.append((packet.numel(), packet.dtype))
        return gather(packet, *rest)

    collectives.all_gather_single = counted  # type: ignore[assignment]
    try:
        yield sent
    finally:
        collectives.all_gather_single = gather


@check
def collectives_of_a_step() -> None:
    """Forward 2·C + 2 numbers in one collective, backward 2·C + 1 in another; evaluation none."""
    layer = SyncBatchNorm(8)
    with counting() as sent:
        y = layer(torch.randn(4, 8, 2, 2).requires_grad_())
        assert sent == [(2 * 8 + 2, torch.float64)]
        y.backward(torch.randn_like(y))
        assert sent[1:] == [(2 * 8 + 1, torch.float64)]
        layer(torch.randn(4, 8, 5), lengths=torch.tensor([1, 2, 3, 5]))
        assert sent[2:] == [(2 * 8 + 2, torch.float64)]
        layer.eval()(torch.randn(4, 8, 2))
        assert len(sent) == 3


@check
def derivatives_of_second_order() -> None:
    x, dy = numbers(sum(SIZES), 3), numbers(sum(SIZES), 3)
    found = []
    for layer, rows in ((SyncBatchNorm(3).double(), SHARD), (BatchNorm1d(3).double(), slice(None))):
        part = x[rows].clone().requires_grad_()
        (dx,) = torch.autograd.grad(seeded(layer)(part), part, dy[rows], create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), part)[0])
    close(found[0], found[1][SHARD], 1e-11)


@check
def recomputed_under_checkpointing() -> None:
    x, dy = numbers(sum(SIZES), 3), numbers(sum(SIZES), 3)
    for reentrant in (True, False):
        layer, plain = seeded(SyncBatchNorm(3).double()), seeded(SyncBatchNorm(3).double())
        part, twin = (x[SHARD].clone().requires_grad_() for _ in range(2))
        y = checkpoint(layer, part, use_reentrant=reentrant)
        y.backward(dy[SHARD])
        plain(twin).backward(dy[SHARD])
        assert layer.num_batches_tracked.item() == 1
        assert part.grad is not None
        assert twin.grad is not None
        close(part.grad, twin.grad)
        close(layer.running_var, plain.running_var, 0)


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
def in_lockstep() -> None:
    """Micro-batches within each process, and the processes: one batch."""
    x, dy = numbers(sum(SIZES) * 2, 3), numbers(sum(SIZES) * 2, 3)
    layer = seeded(SyncBatchNorm(3, statistics=Accumulated(2, of=Synced())).double())
    whole = seeded(BatchNorm1d(3).double())
    everything = x.clone().requires_grad_()
    expected = whole(everything)
    expected.backward(dy)
    assert everything.grad is not None
    lanes = [slice(SHARD.start, SHARD.stop), slice(SHARD.start + sum(SIZES), SHARD.stop + sum(SIZES))]

    def step(rows: slice) -> tuple[Tensor, Tensor | None]:
        part = x[rows].clone().requires_grad_()
        y = layer(part)
        y.backward(dy[rows])
        return y.detach(), part.grad

    with counting() as sent:
        results = evenorm.lockstep(step, lanes)
    assert len(sent) == 2
    for rows, (y, dx) in zip(lanes, results, strict=True):
        assert dx is not None
        close(y, expected[rows])
        close(dx, everything.grad[rows])
    close(layer.running_var, whole.running_var)


def network(norm: Callable[[int], nn.Module]) -> Any:
    return nn.Sequential(nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Linear(6, 5), norm(5), nn.Linear(5, 2))


@check
def in_distributed_data_parallel() -> None:
    """Three steps are those of one process on the whole batch; two forwards before a backward are legal."""
    torch.manual_seed(0)
    mine = nn.parallel.DistributedDataParallel(network(SyncBatchNorm).double(), broadcast_buffers=True)
    torch.manual_seed(0)
    whole = network(BatchNorm1d).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (mine, whole)]
    for step in range(3):
        torch.manual_seed(step)
        x = numbers(4 * COUNT, 4)
        for model, rows, optimizer in (
            (mine, slice(4 * RANK, 4 * RANK + 4), optimizers[0]),
            (whole, slice(None), optimizers[1]),
        ):
            optimizer.zero_grad()
            (model(x[rows]).square().mean() + model(x[rows] * 2).square().mean()).backward()
            optimizer.step()
    for a, b in zip(mine.module.state_dict().values(), whole.state_dict().values(), strict=True):
        close(a.double(), b.double(), 1e-10)


@check
def in_fully_sharded_data_parallel() -> None:
    """With a bfloat16 policy, where torch's layer raises; float32 histories."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for policy, tolerance in (
        (MixedPrecisionPolicy(), 1e-5),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), 0.05),
    ):
        torch.manual_seed(0)
        model = network(SyncBatchNorm)
        torch.manual_seed(0)
        whole = network(BatchNorm1d)
        mesh = dist.device_mesh.init_device_mesh("cpu", (COUNT,))
        fully_shard(model, mesh=mesh, mp_policy=policy)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, whole)]
        for step in range(2):
            torch.manual_seed(step)
            x = torch.randn(4 * COUNT, 4)
            model(x[4 * RANK : 4 * RANK + 4]).float().square().mean().backward()
            whole(x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for layer, twin in ((model[1], whole[1]), (model[4], whole[4])):
            assert layer.running_var.dtype == torch.float32
            assert_same_bits(layer.running_var)
            close(layer.running_var, twin.running_var, tolerance)
            close(layer.weight.full_tensor().float(), twin.weight, tolerance)


@check
def compiled() -> None:
    """One graph, with functional collectives, forward and backward."""
    x, dy = numbers(sum(SIZES), 3, 2), numbers(sum(SIZES), 3, 2)
    layer, whole = seeded(SyncBatchNorm(3).double()), seeded(BatchNorm1d(3).double())
    function = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    part, everything = x[SHARD].clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = function(part), whole(everything)
    y.backward(dy[SHARD])
    expected.backward(dy)
    assert part.grad is not None
    assert everything.grad is not None
    close(y, expected[SHARD])
    close(part.grad, everything.grad[SHARD])
    close(layer.running_var, whole.running_var)
    assert layer.num_batches_tracked.item() == 1


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
def recalibrated() -> None:
    """The population of all ranks' data, one of which may have none; a failing rank fails all."""
    data = numbers(sum(SIZES), 3)
    model: Any = nn.Sequential(nn.BatchNorm1d(3)).double()
    batches = [batch for batch in data[SHARD].split(3) if len(batch) > 1]
    kept = [data[slice(sum(SIZES[:r]), sum(SIZES[: r + 1]))].split(3) for r in range(COUNT)]
    population = torch.cat([batch for rank in kept for batch in rank if len(batch) > 1])
    evenorm.recalibrate(model, batches)
    close(model[0].running_mean, population.mean(0))
    close(model[0].running_var, population.var(0))
    assert_same_bits(model[0].running_var)

    def broken() -> Iterator[Tensor]:
        yield data
        raise OSError("disk full")

    before = model[0].running_mean.clone()
    words = "disk full" if RANK == COUNT - 1 else f"rank {COUNT - 1}"
    with pytest.raises((OSError, RuntimeError), match=words):
        evenorm.recalibrate(model, broken() if RANK == COUNT - 1 else [data])
    assert model[0].running_mean.equal(before)


@check
def skips_a_call() -> None:
    """The last rank forgets one layer of two that look alike: an error on every rank, and nothing is mixed."""
    first = SyncBatchNorm(3)
    for second in (SyncBatchNorm(3), copy.deepcopy(first)):
        x = torch.randn(4, 3)
        with pytest.raises(SyncError) as found:
            second(x if RANK == COUNT - 1 else first(x))
        places = re.findall(
            r"(rank [^;]*) at SyncBatchNorm\('\[n\] c \[\.\.\.\]', 3\), number (\d+) \(forward", str(found.value)
        )
        assert [ranks for ranks, _ in places] == [", ".join(f"rank {r}" for r in range(COUNT - 1)), f"rank {COUNT - 1}"]
        assert places[0][1] != places[1][1]
        for layer in (first, second):
            assert layer.running_mean is not None
            assert layer.running_mean.tolist() == [0, 0, 0]


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
        compare(layers[size].double(), BatchNorm1d(size).double(), numbers(sum(SIZES), size), numbers(sum(SIZES), size))


@check
def skips_a_call_of_another_size() -> None:
    """Gloo ends a process that is sent too much; the others say what failed, and no rank comes through."""
    first, second = SyncBatchNorm(3), SyncBatchNorm(300)
    if RANK == COUNT - 1:
        second(torch.randn(4, 300))
    else:
        first(torch.randn(4, 3))
    sys.stdout.write("came through\n")


@check
def dies() -> None:
    """A rank that is gone is an error on the others, within the group's timeout."""
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if RANK == COUNT - 1:
        os._exit(17)
    layer(torch.randn(4, 3))
    sys.stdout.write("came through\n")


@check
def dies_before_the_backward_pass() -> None:
    layer = SyncBatchNorm(3)
    y = layer(torch.randn(4, 3).requires_grad_())
    if RANK == COUNT - 1:
        os._exit(17)
    y.square().sum().backward()
    sys.stdout.write("came through\n")


def main() -> None:
    store = dist.FileStore(  # type: ignore[attr-defined]
        os.environ["STORE"], COUNT
    )
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=COUNT, timeout=timedelta(seconds=30))
    for name in sys.argv[1:]:
        torch.manual_seed(0)
        sys.stdout.write(f"{name}\n")
        CHECKS[name]()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Where synchronized layers are called: recomputed, differentiated, wrapped, compiled, in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenorm
from evenorm import Accumulated, BatchNorm1d, SyncBatchNorm, Synced
from rank_setting import COUNT, RANK, SHARD, SIZES, assert_same_bits, check, close, counting, numbers, seeded


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
    # And no other collective, whoever asks for it.
    layer.train()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = layer(torch.randn(4, 8, 2, 2).requires_grad_())
        y.backward(torch.randn_like(y))
    assert [e.name for e in profile.events() or () if e.name.startswith("gloo:")] == ["gloo:all_gather"] * 2


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
    mine = nn.parallel.DistributedDataParallel(network(SyncBatchNorm).double())
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
def buffers_are_broadcast_between_two_forwards() -> None:
    """Before the second one writes them in place; frozen ones were an operand of the first."""
    inner = network(BatchNorm1d)
    inner[4].freeze()
    # The kernel whose gradient needs the history itself.
    inner[4].kernel = "eager"
    model = nn.parallel.DistributedDataParallel(inner)
    x = torch.randn(4, 4)
    (model(x).square().mean() + model(2 * x).square().mean()).backward()
    assert all(p.grad is not None for p in inner.parameters())
    assert inner[1].num_batches_tracked.item() == 2
    assert inner[4].num_batches_tracked.item() == 0


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

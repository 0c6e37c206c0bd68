"""One process of the suite ``dist``: ``python -m evenorm.bench.rank RANK PROCESSES DEVICE SECONDS SHAPE…``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenorm.bench.device import CPU, DEVICES, Device
from evenorm.bench.peers import OURS
from evenorm.kernels import reference
from evenorm.layers import SyncBatchNorm
from evenorm.pattern import Pattern

__all__ = ["Reduced"]

# Off by more than this, in units of the largest value, a variant gets no time.
_LIMIT = 1e-4
_LEAST, _MOST = 5, 101
# Inputs stand this many deviations from zero, as activations before a bias is learned do.
_OFFSET = 10.0


class _Reduced(torch.autograd.Function):
    """The plain scheme: all-reduce of Σx, Σx² and n forward, of Σdy and Σdy·x̂ backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        axes = (0, 2, 3)
        sums = torch.cat([x.sum(axes), x.square().sum(axes), x.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(sums)
        channels = x.shape[1]
        ctx.count = sums[-1]
        mean = sums[:channels] / ctx.count
        rstd = (sums[channels:-1] / ctx.count - mean.square() + eps).rsqrt()
        x_hat = (x - mean[:, None, None]) * rstd[:, None, None]
        ctx.save_for_backward(x_hat, rstd, weight)
        return x_hat * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = dys
        x_hat, rstd, weight = ctx.saved_tensors
        d_bias, d_weight = dy.sum((0, 2, 3)), (dy * x_hat).sum((0, 2, 3))
        sums = torch.stack([d_bias, d_weight])
        dist.all_reduce(sums)
        c1, c2 = (sums / ctx.count)[:, :, None, None]
        return (weight * rstd)[:, None, None] * (dy - c1 - x_hat * c2), d_weight, d_bias, None


class Reduced(nn.BatchNorm2d):
    """Batch normalization by the plain scheme."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the sums of all processes."""
        return _Reduced.apply(input, self.weight, self.bias, self.eps)


VARIANTS: dict[str, Callable[[int], nn.Module]] = {
    OURS: SyncBatchNorm,
    "torch": nn.SyncBatchNorm,
    "all_reduce": Reduced,
}


def main(rank: int, processes: int, device: Device, seconds: float, *shape: int) -> None:
    """Gate every variant, time those that pass in turns, and write what was found on the first rank."""
    store = dist.FileStore(os.environ["STORE"], processes)  # type: ignore[attr-defined]
    if device is not CPU:
        torch.cuda.set_device(rank)
    dist.init_process_group(device.backend, store=store, rank=rank, world_size=processes)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(processes * shape[0], *shape[1:], generator=generator) for _ in range(2))
    x += _OFFSET
    mine = slice(rank * shape[0], (rank + 1) * shape[0])
    pattern = Pattern.parse("[n] c [...]")
    y = reference.forward(x.double(), pattern)[mine]
    dx = reference.backward(dy.double(), x.double(), pattern).x[mine]
    found: dict[str, Any] = {"samples": {}, "errors": {}, "absent": {}}
    calls: dict[str, Callable[[], Tensor]] = {}
    d_mine = dy[mine].to(device.name)
    for name, make in VARIANTS.items():
        part = x[mine].to(device.name, copy=True).requires_grad_()
        layer = make(shape[1]).to(device.name)
        try:
            output = layer(part)
            (gradient,) = torch.autograd.grad(output, part, d_mine)
        except (RuntimeError, ValueError) as fault:
            found["absent"][name] = str(fault)
            continue
        pairs = ((output, y), (gradient, dx))
        error = max(
            float((a.detach().cpu().double() - torch.from_numpy(b)).abs().max() / abs(b).max()) for a, b in pairs
        )
        # All ranks decide alike.
        worst = torch.tensor([error], device=device.name)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        found["errors"][name] = (worst.item(), _LIMIT)
        if worst.item() > _LIMIT:
            found["absent"][name] = f"wrong: off by {worst.item():.2g} of the largest value"
            continue

        def step(layer: nn.Module = layer, part: Tensor = part) -> Tensor:
            return torch.autograd.grad(layer(part), part, d_mine)[0]

        calls[name] = step
    found["samples"] = _timed(calls, seconds, device)
    dist.destroy_process_group()
    if rank == 0:
        json.dump(found, sys.stdout)


def _timed(calls: dict[str, Callable[[], Tensor]], seconds: float, device: Device) -> dict[str, list[float]]:
    """Seconds per call, in turns; every rank makes as many rounds as the first one's clock allows."""
    once = torch.zeros(1, device=device.name)
    for call in calls.values():
        call()
        once += device.timed(call, 1) * 1e-9
    dist.broadcast(once, 0)
    rounds = min(max(int(seconds / max(once.item(), 1e-9)), _LEAST), _MOST)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            dist.barrier()
            samples[name].append(device.timed(call, 1) * 1e-9)
    return samples


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), DEVICES[sys.argv[3]], float(sys.argv[4]), *map(int, sys.argv[5:]))

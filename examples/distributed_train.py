"""Train one network on several processes, with batch statistics of all of them together.

    torchrun --nproc-per-node 2 examples/distributed_train.py

On a cluster the same, with torchrun's --nnodes and --rdzv-endpoint; where there are GPUs each process takes one and
talks over NCCL, else over gloo. Small parts are the point: a layer that saw only the 4 images of its own process would
normalize by 4.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evenorm import SyncBatchNorm


def network() -> nn.Sequential:
    """Two convolutions, each normalized over the batches of all processes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False),
        SyncBatchNorm(8, activation="relu"),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        SyncBatchNorm(16, activation="relu"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of horizontal, vertical or no stripes in noise, and which of them."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (count,), generator=generator)
    wave = ((torch.arange(16) % 4 < 2) * 3.0 - 1.5).expand(16, 16)
    patterns = torch.stack([wave.T, wave, torch.zeros(16, 16)])
    return torch.randn(count, 1, 16, 16, generator=generator) + patterns[kind][:, None], kind


def main(steps: int = 60, count: int = 4) -> None:
    """Train on so many images in each process; rank 0 reports."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    model = DistributedDataParallel(network().to(device), device_ids=[device] if gpu else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        # Every process has images of its own.
        images, kind = (t.to(device) for t in stripes(count, seed=1 + step * processes + rank))
        loss = nn.functional.cross_entropy(model(images), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 20 == 0:
            print(f"step {step:2}  loss {loss.item():.3f}")

    model.eval()
    images, kind = (t.to(device) for t in stripes(256, seed=0))
    with torch.no_grad():
        right = (model(images).argmax(1) == kind).float().mean().item()
    if rank == 0:
        print(f"accuracy {right:.3f} on new images, {processes} processes of {count} images")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Train one network on several processes, with batch statistics of all of them together.

    torchrun --nproc-per-node 2 examples/distributed_train.py

On a cluster the same, with torchrun's --nnodes and --rdzv-endpoint; where there are GPUs each process takes one and
talks over NCCL, else over gloo. Small shards are the point: with 4 images per process a layer that saw only its own
would normalize by 4.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evenorm import SyncBatchNorm


def network(classes: int) -> nn.Sequential:
    """Two convolutions, each normalized over the batches of all processes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False),
        SyncBatchNorm(8, activation="relu"),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        SyncBatchNorm(16, activation="relu"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of horizontal, vertical or no stripes in noise."""
    target = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(count, 1, 16, 16, generator=generator)
    stripes = (torch.arange(16) % 4 < 2).float() * 2 - 1
    patterns = torch.stack([stripes.expand(16, 16), stripes.expand(16, 16).T, torch.zeros(16, 16)])
    return noise + 1.5 * patterns[target][:, None], target


def main() -> None:
    """Train; rank 0 reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="images per process")
    options = parser.parse_args()

    gpus = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    model = DistributedDataParallel(network(3).to(device), device_ids=[device] if gpus else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # Every process has images of its own.
    generator = torch.Generator().manual_seed(1 + rank)
    for step in range(options.steps):
        images, target = (t.to(device) for t in shapes(options.batch, generator))
        loss = nn.functional.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 20 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}")

    model.eval()
    images, target = shapes(256, torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = (model(images.to(device)).argmax(1).cpu() == target).float().mean()
    if rank == 0:
        print(f"accuracy {right:.3f} on new images, {dist.get_world_size()} processes of {options.batch} images")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

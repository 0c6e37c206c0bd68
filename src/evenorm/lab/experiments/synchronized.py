"""Must batch statistics be synchronized over processes?"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, distributed, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import falling
from evenorm.lab.networks import perceptron
from evenorm.lab.rates import accuracy, attempts, lowest
from evenorm.lab.setting import Setting
from evenorm.lab.workers import processes

# Of the trainings: together this many images a step, each process as many as its share.
TOGETHER = 32
SHARES = (2, 4, 8, 16, 32)
WIDTHS = (64, 64, 64)
RATES = (0.03, 0.1, 0.3)
# Of the layers that real processes compute.
FEATURES = 48


def own_batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return a batch and a gradient for each process; unequal in size, and each from a population of its own."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [4 + 3 * rank for rank in range(count)]
    return [
        (rank + (1 + rank) * torch.randn(size, FEATURES, generator=draw), torch.randn(size, FEATURES, generator=draw))
        for rank, size in enumerate(sizes)
    ]


def there_and_back(layer: nn.Module, x: Tensor, dy: Tensor) -> Tensor:
    """Return y and dx side by side."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    return torch.cat([y.detach(), x.grad], 1)


def as_rank(rank: int, count: int, store: str, seed: int) -> list[list[float]]:
    """Compute as one of several processes: the layer on this one's own batch."""
    # No name of this machine need resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=120)
    )
    try:
        x, dy = own_batches(count, seed)[rank]
        return there_and_back(evenorm.SyncBatchNorm(FEATURES), x, dy).tolist()
    finally:
        distributed.destroy_process_group()


def in_processes(count: int, seed: int) -> Tensor:
    """Return what so many real processes compute together, one below the other."""
    with TemporaryDirectory() as folder, processes(count) as pool:
        store = str(Path(folder, "store"))
        parts = [pool.submit(as_rank, rank, count, store, seed) for rank in range(count)]
        return torch.cat([torch.tensor(part.result()) for part in parts])


def distance(seen: Tensor, expected: Tensor) -> float:
    """The largest difference, beside the largest value, in percent."""
    return 100 * float((seen - expected).abs().max() / expected.abs().max())


def measure(setting: Setting, seed: int) -> Observation:
    """Compare real processes with one, then train as processes of ever smaller shares would."""
    found = Observation(curves={"accuracy": {}})
    if distributed.is_available() and distributed.is_gloo_available():
        count = setting.pick(quick=2, full=3, large=4)
        parts = own_batches(count, seed)
        x, dy = (torch.cat(side) for side in zip(*parts, strict=True))
        whole = there_and_back(evenorm.BatchNorm1d(FEATURES), x, dy)
        found.effects["exact"] = distance(in_processes(count, seed), whole)
        alone = torch.cat([there_and_back(evenorm.BatchNorm1d(FEATURES), *part) for part in parts])
        found.figures["distance without synchronization, %"] = distance(alone, whole)
    else:
        found.reasons["exact"] = "this build of torch has no gloo, over which processes would talk"

    images = setting.images
    steps = setting.steps(quick=160, full=800, large=10000)
    reached = {}
    for share in SHARES:

        def start(share: int = share) -> nn.Module:
            layer = partial(evenorm.GhostBatchNorm1d, virtual_batch_size=share)
            return perceptron(int(np.prod(images.shape)), WIDTHS, len(images.classes), layer, seed=seed)

        pace = falling(steps)
        best = lowest(attempts(start, images, RATES, steps=steps, seed=seed, batch=TOGETHER, pace=pace))
        reached[share] = accuracy(best.network, images)
        found.figures[f"rate, {share} images each"] = best.rate
    found.curves["accuracy"]["each process by itself"] = (SHARES, [reached[share] for share in SHARES])
    found.curves["accuracy"]["synchronized"] = (SHARES, [reached[TOGETHER]] * len(SHARES))
    found.effects["needed"] = reached[TOGETHER] - reached[2]
    found.effects["large"] = reached[TOGETHER] - reached[16]
    return found


EXPERIMENT = Experiment(
    question="Must batch statistics be synchronized over processes?",
    protocol=(
        "A training of 2, 4, 8 or 16 images in each of 16, 8, 4 or 2 processes, which average their gradients: three "
        "hidden layers of 64 ReLU units on images, 32 of them a step in all, plain stochastic gradient descent from "
        "the best of 0.03, 0.1, 0.3 by training loss, falling to zero. Without synchronization each process normalizes "
        "by its own images, which is what ghost batch normalization computes in one process; synchronized, by all 32. "
        "And real processes over gloo (quick 2, full 3) with batches of unequal size and unlike populations: outputs "
        "and gradients of synchronized batch normalization beside those of one process on all of them."
    ),
    claims=(
        Claim(
            "needed",
            "Training in several processes needs synchronized batch statistics: here 2 images in each of 16.",
            "“Batch normalisation” (Definition), Limitations; Peng et al., “MegDet” (2018), section 3.3",
            "held-out accuracy synchronized, minus that where each process normalizes by its own two images",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "large",
            "So too where each process has 16 images.",
            "“Batch normalisation” (Definition), Limitations, which names no size",
            "held-out accuracy synchronized, minus that where each process normalizes by its own 16 images",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "exact",
            "Synchronized, several processes compute what one does on all their images.",
            "Peng et al. (2018), section 3.3; Ioffe & Szegedy (2015), algorithm 1 over all images",
            "largest difference of outputs and gradients, beside the largest value",
            Rule(holds=0.001, reverses=1.0),
            unit="%",
        ),
    ),
    changes=(
        "Images that differ between processes (each with its own camera, or its own class) make the own statistics "
        "worse than the random shares here do. Maps give each image many positions, so that two images may do. Noise "
        "of small shares can help a network that overfits, which is what ghost batches are made for."
    ),
    measure=measure,
    plots=(
        Plot(
            "accuracy",
            "Held-out accuracy, by the images of each process",
            "images in each process",
            "held-out images right, %",
            logarithmic="x",
        ),
    ),
)

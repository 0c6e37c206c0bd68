"""One training run, and what is measured on the way."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evenorm.lab.data import Bytes, Images
from evenorm.lab.networks import Network
from evenorm.lab.probes import Activations, Gradients, SavedBytes

TARGET = 0.9
PROBES = 24
EVALUATIONS = 32
# Accuracy on the way is taken on so many held-out images at most, the last one on all of them.
WATCHED = 512


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class Schedule:
    """How to train: plain stochastic gradient descent, the rate falling linearly from its start to zero."""

    batch_size: int
    steps: int
    rate: float
    seed: int


@dataclass
class Run:
    """What one training run showed.

    Attributes:
        losses: training loss of every step; ends early where it stopped being finite.
        accuracy: share of the held-out images classified right at the end, in evaluation mode.
        train_accuracy: the same for as many training images.
        reached: the first look at which 90 % of the watched held-out images were right, or none.
        changed: share of the watched images whose class changes when the trained network is
            switched from evaluation to training mode and sees them in batches of the training size.
        step_seconds: median of the processor time of forward, backward and update, which other
            programs on a busy machine do not stretch.
        saved_bytes: what autograd keeps from a forward pass for its backward pass.
        probed: the steps at which activations and gradients were read.
    """

    losses: list[float] = field(default_factory=list)
    accuracy: float = math.nan
    train_accuracy: float = math.nan
    reached: int | None = None
    changed: float = math.nan
    step_seconds: float = math.nan
    saved_bytes: int = 0
    probed: list[int] = field(default_factory=list)
    activations: dict[str, list[list[float]]] = field(default_factory=dict)
    gradients: dict[str, list[float]] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return not math.isfinite(self.losses[-1])

    def last_loss(self) -> float:
        """Mean training loss over the last quarter; infinite where the run diverged."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return math.inf if self.diverged else sum(last) / len(last)


def looks(steps: int) -> int:
    """Return the steps between two looks at the accuracy."""
    return max(1, steps // EVALUATIONS)


def never() -> bool:
    """Let a run go to its end."""
    return False


def train(
    network: Network,
    images: Images,
    schedule: Schedule,
    measure: bool = True,
    stopped: Callable[[], bool] = never,
) -> Run:
    """Train a network in place; with ``measure`` also read everything that a :class:`Run` holds.

    Weights come out bit for bit the same with and without measuring.

    Raises:
        Stopped: ``stopped()`` became true between two steps.
    """
    run = Run()
    activations, gradients = Activations(), Gradients()
    optimizer = torch.optim.SGD(network.parameters(), lr=schedule.rate)
    probed = set(np.linspace(0, schedule.steps - 1, PROBES).astype(int)) if measure else set()
    watched = even_sample(len(images.test_labels), WATCHED)
    seconds = []
    network.train()
    for step, index in enumerate(batches(len(images.train_labels), schedule)):
        if stopped():
            raise Stopped
        optimizer.param_groups[0]["lr"] = schedule.rate * (1 - step / schedule.steps)
        x, labels = tensors(images, images.train_pixels[index], images.train_labels[index])
        probing = step in probed
        with ExitStack() as context:
            if probing:
                memory = SavedBytes()
                context.enter_context(memory.watching([x, *network.parameters()]))
                context.enter_context(activations.watching(network))
            begin = time.thread_time()
            loss = cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        if probing:
            gradients.read(network)
            run.probed.append(step)
            run.saved_bytes = memory.total
        optimizer.step()
        if not probing:
            seconds.append(time.thread_time() - begin)
        run.losses.append(loss.item())
        if run.diverged:
            break
        done = step + 1
        if measure and run.reached is None and done % looks(schedule.steps) == 0:
            found = predictions(network, images, images.test_pixels[watched])
            if np.mean(found == images.test_labels[watched]) >= TARGET:
                run.reached = done
    if measure:
        run.activations, run.gradients = activations.percentiles, gradients.norms
        run.step_seconds = float(np.median(seconds)) if seconds else math.nan
        judge(run, network, images, schedule.batch_size)
    return run


def judge(run: Run, network: Network, images: Images, batch_size: int) -> None:
    """Take the accuracies of a trained network, and compare its two modes."""
    found = predictions(network, images, images.test_pixels)
    run.accuracy = float(np.mean(found == images.test_labels))
    some = even_sample(len(images.train_labels), len(images.test_labels))
    right = predictions(network, images, images.train_pixels[some]) == images.train_labels[some]
    run.train_accuracy = float(np.mean(right))
    watched = even_sample(len(found), WATCHED)
    watched = watched[: max(batch_size, len(watched) // batch_size * batch_size)]
    # On a copy: training mode moves running averages.
    training = predictions(copy.deepcopy(network), images, images.test_pixels[watched], batch_size, training=True)
    run.changed = float(np.mean(training != found[watched]))


def batches(images: int, schedule: Schedule) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of each step's batch: whole shuffled epochs, without their incomplete ends."""
    draw = np.random.default_rng(schedule.seed)
    order, used = draw.permutation(images), 0
    for _ in range(schedule.steps):
        if used + schedule.batch_size > images:
            order, used = draw.permutation(images), 0
        yield order[used : used + schedule.batch_size]
        used += schedule.batch_size


def even_sample(total: int, most: int) -> NDArray[np.int64]:
    """Return at most so many indices, evenly spread.

    >>> even_sample(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.linspace(0, total - 1, min(total, most)).astype(np.int64)


def tensors(images: Images, pixels: Bytes, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return pixels with mean 0 and variance 1 over the training images, and labels."""
    mean, deviation = images.scale
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float().sub_(mean).div_(deviation)
    return x, torch.from_numpy(labels)


@torch.no_grad()
def predictions(
    network: nn.Module, images: Images, pixels: Bytes, size: int = 512, training: bool = False
) -> NDArray[np.int64]:
    """Return the class that a network gives to each image, in evaluation mode unless asked otherwise."""
    was_training = network.training
    network.train(training)
    found = []
    for start in range(0, len(pixels), size):
        x, _ = tensors(images, pixels[start : start + size], images.test_labels[:0])
        found.append(network(x).argmax(1).numpy())
    network.train(was_training)
    return np.concatenate(found)

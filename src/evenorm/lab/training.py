"""One training run, and what is measured on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evenorm.lab.data import Bytes, Images
from evenorm.lab.fit import Batch, Probe, Trace, descent, falling, fit
from evenorm.lab.networks import Network
from evenorm.lab.probes import Activations, Gradients, SavedBytes

TARGET = 0.9
PROBES = 24
EVALUATIONS = 32
# Accuracy on the way is taken on so many held-out images at most, the last one on all of them.
WATCHED = 512


@dataclass(frozen=True)
class Schedule:
    """How to train: plain stochastic gradient descent, the rate falling linearly from its start to zero."""

    batch_size: int
    steps: int
    rate: float
    seed: int


@dataclass
class Run(Trace):
    """What one training run of a comparison showed.

    Attributes:
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

    accuracy: float = math.nan
    train_accuracy: float = math.nan
    reached: int | None = None
    changed: float = math.nan
    step_seconds: float = math.nan
    saved_bytes: int = 0
    probed: list[int] = field(default_factory=list)
    activations: dict[str, list[list[float]]] = field(default_factory=dict)
    gradients: dict[str, list[float]] = field(default_factory=dict)


def looks(steps: int) -> int:
    """Return the steps between two looks at the accuracy."""
    return max(1, steps // EVALUATIONS)


class Insides(Probe):
    """Reads activations, gradients and saved bytes at some steps, evenly spread."""

    def __init__(self, steps: int) -> None:
        self.steps = set(np.linspace(0, steps - 1, PROBES).astype(int).tolist())
        self.activations, self.gradients, self.memory = Activations(), Gradients(), SavedBytes()
        self.probed: list[int] = []

    def due(self, step: int) -> bool:
        """Whether the step is one of them."""
        return step in self.steps

    def watching(self, network: nn.Module, batch: Batch) -> AbstractContextManager[ExitStack]:
        """Read what enters the activation functions, and what autograd keeps."""
        assert isinstance(network, Network)
        self.memory = SavedBytes()
        with ExitStack() as context:
            context.enter_context(self.memory.watching([batch[0], *network.parameters()]))
            context.enter_context(self.activations.watching(network))
            return context.pop_all()

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Read the gradients."""
        assert isinstance(network, Network)
        self.gradients.read(network)
        self.probed.append(step)


class Watch(Probe):
    """Takes the accuracy on held-out images every so many steps, until it is reached.

    Attributes:
        steps: after how many steps it was taken.
        shares: of the images that were right.
    """

    def __init__(self, images: Images, every: int, until: float = math.inf, most: int = WATCHED) -> None:
        self.images, self.every, self.until = images, every, until
        self.some = even_sample(len(images.test_labels), most)
        self.steps: list[int] = []
        self.shares: list[float] = []

    def due(self, step: int) -> bool:
        """Whether so many steps are done, and there is still something to wait for."""
        return (step + 1) % self.every == 0 and self.reached(self.until) is None

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take the accuracy in evaluation mode."""
        found = predictions(network, self.images, self.images.test_pixels[self.some])
        self.steps.append(step + 1)
        self.shares.append(float(np.mean(found == self.images.test_labels[self.some])))

    def reached(self, target: float) -> int | None:
        """Return after how many steps an accuracy was first seen, or none."""
        return next((step for step, share in zip(self.steps, self.shares, strict=True) if share >= target), None)


def train(network: Network, images: Images, schedule: Schedule, measure: bool = True) -> Run:
    """Train a network in place; with ``measure`` also read everything that a :class:`Run` holds.

    Weights come out bit for bit the same with and without measuring.

    Raises:
        Stopped: the pool that this process belongs to closes.
    """
    insides = Insides(schedule.steps)
    watch = Watch(images, looks(schedule.steps), until=TARGET)
    trace = fit(
        network,
        stream(images, schedule),
        descent(schedule.rate),
        pace=falling(schedule.steps),
        probes=(insides, watch) if measure else (),
    )
    run = Run(trace.losses, trace.seconds)
    if measure:
        run.reached = watch.reached(TARGET)
        run.probed, run.saved_bytes = insides.probed, insides.memory.total
        run.activations, run.gradients = insides.activations.percentiles, insides.gradients.norms
        run.step_seconds = float(np.median(run.seconds)) if run.seconds else math.nan
        judge(run, network, images, schedule.batch_size)
    return run


def judge(run: Run, network: Network, images: Images, batch_size: int) -> None:
    """Take the accuracies of a trained network, and compare its two modes."""
    found = predictions(network, images, images.test_pixels)
    run.accuracy = float(np.mean(found == images.test_labels))
    some = even_sample(len(images.train_labels), len(images.test_labels))
    right = predictions(network, images, images.train_pixels[some]) == images.train_labels[some]
    run.train_accuracy = float(np.mean(right))
    run.changed = disagreement(network, images, batch_size)


def disagreement(network: nn.Module, images: Images, batch_size: int) -> float:
    """Return the share of watched held-out images whose class depends on the mode, in batches of a size."""
    watched = even_sample(len(images.test_labels), WATCHED)
    watched = watched[: max(batch_size, len(watched) // batch_size * batch_size)]
    pixels = images.test_pixels[watched]
    # On a copy: training mode moves running averages.
    training = predictions(copy.deepcopy(network), images, pixels, batch_size, training=True)
    return float(np.mean(training != predictions(network, images, pixels)))


def stream(images: Images, schedule: Schedule) -> Iterator[Batch]:
    """Yield the batch of each step."""
    for index in batches(len(images.train_labels), schedule):
        yield tensors(images, images.train_pixels[index], images.train_labels[index])


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

"""The one training loop, and probes, which look at it and change no bit of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evenorm.lab.workers import check

Batch = tuple[Tensor, Tensor]
Optimize = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Pace = Callable[[int], float]


class Probe:
    """Looks at steps of a training. What it may change without leaving a trace: buffers, mode, random state.

    It leaves parameters and their gradients alone; one that needs gradients of its own takes them with
    ``torch.autograd.grad``.
    """

    def due(self, step: int) -> bool:
        """Whether it looks at this step; counted from 0."""
        return True

    def watching(self, network: nn.Module, batch: Batch) -> AbstractContextManager[Any] | None:
        """Return what surrounds the step's forward pass, if anything does."""
        return None

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Look between the backward pass and the update: the gradients are there."""

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Look after the update."""


@dataclass
class Trace:
    """What every training leaves.

    Attributes:
        losses: of each step, before its update; ends early where it stopped being finite.
        seconds: processor time of forward, backward and update, of each step whose forward pass nothing surrounds.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return not math.isfinite(self.losses[-1])

    def last_loss(self) -> float:
        """Mean loss over the last quarter; infinite where the training diverged."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return math.inf if self.diverged else sum(last) / len(last)


def descent(rate: float, momentum: float = 0.0) -> Optimize:
    """Return stochastic gradient descent at a rate."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=momentum)


def adam(rate: float) -> Optimize:
    """Return Adam at a rate."""
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def falling(steps: int) -> Pace:
    """Return the pace that falls linearly to zero over so many steps.

    >>> [falling(4)(step) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return lambda step: 1 - step / steps


def even(step: int) -> float:
    """Keep the pace."""
    return 1.0


def fit(
    network: nn.Module,
    batches: Iterable[Batch],
    optimize: Optimize,
    *,
    pace: Pace = even,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    probes: Iterable[Probe] = (),
) -> Trace:
    """Train a network in place, one step for each batch, until they end or the loss is not finite.

    Args:
        network: in training mode afterwards.
        batches: input and target of each step.
        optimize: makes the optimizer of the parameters.
        pace: the factor on the optimizer's rates at each step.
        loss: of the network's output and the target.
        probes: what looks on; weights and losses come out bit for bit the same without them.

    Raises:
        Stopped: the pool that this process belongs to closes.
    """
    trace, probes = Trace(), list(probes)
    optimizer = optimize(network.parameters())
    start = [group["lr"] for group in optimizer.param_groups]
    network.train()
    for step, batch in enumerate(batches):
        check()
        for group, rate in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = rate * pace(step)
        due = [probe for probe in probes if probe.due(step)]
        around = [context for probe in due if (context := probe.watching(network, batch))]
        with ExitStack() as stack:
            for context in around:
                stack.enter_context(context)
            begin = time.thread_time()
            value = loss(network(batch[0]), batch[1])
        optimizer.zero_grad()
        value.backward()
        seconds = time.thread_time() - begin
        for probe in due:
            with undisturbed(network):
                probe.differentiated(step, network, batch)
        begin = time.thread_time()
        optimizer.step()
        if not around:
            trace.seconds.append(seconds + time.thread_time() - begin)
        trace.losses.append(value.item())
        if trace.diverged:
            break
        for probe in due:
            with undisturbed(network):
                probe.updated(step, network, batch)
    return trace


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put back what a look at a network may move: its buffers, its modes and torch's random state."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training

"""The main experiment: one small network, trained once for every normalizer, batch size and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median

from evenorm.lab.comparison.noise import spread
from evenorm.lab.data import Images
from evenorm.lab.networks import MODELS, Model, Network, Placement, build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.own import build_own, is_own, why_not_own
from evenorm.lab.setting import Setting
from evenorm.lab.training import Run, Schedule, looks, train
from evenorm.lab.workers import gather, processes

# Each about three times the one before.
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# A trial is a run in small: a quarter of its steps.
TRIAL = 4
# It trains where its last losses lie 5 % below ln(classes), the loss of guessing.
BELOW_GUESSING = 0.95


@dataclass(frozen=True)
class Protocol:
    """What is compared, and how.

    Attributes:
        rate: the starting rate of every run; none: each row's own, the one of the grid whose trial
            ends with the lowest training loss. Held-out images take no part in that.
        model: one of the lab's networks, or ``module:factory`` for one of the user's own.
        length: steps of a run at batch size 1.
    """

    normalizers: tuple[str, ...] = tuple(NORMALIZERS)
    batch_sizes: tuple[int, ...] = (64, 4)
    seeds: int = 3
    rate: float | None = None
    placement: Placement = "before"
    model: str = "cnn"
    length: int = 512

    def steps(self, batch_size: int) -> int:
        """Return the length of a run, length/∛(batch size): of 512, 128 steps at batch size 64, 323 at 4.

        Smaller batches need more steps, though fewer images in all.
        """
        return max(1, round(self.length / batch_size ** (1 / 3)))

    def reason(self, normalizer: str, batch_size: int) -> str | None:
        """Return why a row has nothing to show, or none."""
        own = why_not_own(normalizer) if is_own(self.model) else None
        return own or NORMALIZERS[normalizer].declines(self.model, batch_size)

    def network(self, images: Images, normalizer: str, seed: int) -> Network:
        """Return a fresh network of a row; the same seed gives every row the same weights."""
        if is_own(self.model):
            return build_own(self.model, normalizer, seed)
        model: Model = next(model for model in MODELS if model == self.model)
        return build(model, images.shape, len(images.classes), NORMALIZERS[normalizer], self.placement, seed)

    def tasks(self) -> list[Task]:
        """Return every run, seed by seed, so that an interrupted comparison is an even one."""
        return [
            Task(name, batch_size, seed)
            for seed in range(self.seeds)
            for name in self.normalizers
            for batch_size in self.batch_sizes
            if not self.reason(name, batch_size)
        ]


@dataclass(frozen=True)
class Task:
    """One run of a comparison."""

    normalizer: str
    batch_size: int
    seed: int


@dataclass
class Outcome:
    """What one task showed.

    Attributes:
        trials: training loss at the end of each trial, by rate.
        largest: the largest rate that still trains; none where no rate of the grid does.
        rate: the rate at which the run was made.
    """

    trials: dict[float, float]
    largest: float | None
    rate: float
    run: Run


@dataclass
class Row:
    """One normalizer at one batch size, over seeds.

    Attributes:
        outcomes: by seed, those that finished.
        reason: why there is nothing to show, or none.
    """

    normalizer: str
    batch_size: int
    steps: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    reason: str | None = None

    def values(self, of: Callable[[Outcome], float]) -> list[float]:
        """Return one figure of every finished seed, in the order of seeds."""
        return [of(self.outcomes[seed]) for seed in sorted(self.outcomes)]

    @property
    def accuracies(self) -> list[float]:
        """Held-out accuracy by seed."""
        return self.values(lambda outcome: outcome.run.accuracy)

    @property
    def accuracy(self) -> float:
        """Mean held-out accuracy."""
        return mean(self.accuracies)

    @property
    def accuracy_spread(self) -> float:
        """Standard deviation of the accuracy over seeds."""
        return spread(self.accuracies)

    @property
    def steps_to_target(self) -> list[float]:
        """Steps to 90 % by seed; infinite where a run never got there."""
        return self.values(lambda outcome: outcome.run.reached or math.inf)

    @property
    def median_steps(self) -> float:
        """Median of the steps to 90 %."""
        return median(self.steps_to_target)

    @property
    def interval(self) -> int:
        """Steps between two looks at the accuracy."""
        return looks(self.steps)

    @property
    def largest_rate(self) -> float | None:
        """The largest rate that trains: the median over seeds, where no rate counts as zero."""
        rates = sorted(self.values(lambda outcome: outcome.largest or 0.0))
        return rates[(len(rates) - 1) // 2] or None

    @property
    def rate(self) -> float:
        """The starting rate of the runs: the median over seeds."""
        rates = sorted(self.values(lambda outcome: outcome.rate))
        return rates[(len(rates) - 1) // 2]

    @property
    def changed(self) -> float:
        """Mean share of images whose class depends on the mode."""
        return mean(self.values(lambda outcome: outcome.run.changed))

    @property
    def overfit(self) -> float:
        """Mean accuracy on training images minus that on held-out ones."""
        return mean(self.values(lambda outcome: outcome.run.train_accuracy - outcome.run.accuracy))

    @property
    def step_seconds(self) -> float:
        """Median time of a step."""
        return median(self.values(lambda outcome: outcome.run.step_seconds))

    @property
    def saved_bytes(self) -> int:
        """What autograd keeps from a forward pass; the same for every seed."""
        return next(iter(self.outcomes.values())).run.saved_bytes


@dataclass
class Comparison:
    """The rows of a comparison and how far it got."""

    protocol: Protocol
    images: Images
    folder: Path | None
    rows: list[Row]
    finished: int = 0
    total: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def partial(self) -> bool:
        """Whether runs are missing."""
        return self.finished < self.total

    def at(self, batch_size: int) -> list[Row]:
        """Return all rows at a batch size, also those without a result."""
        return [row for row in self.rows if row.batch_size == batch_size]

    def shown(self, batch_size: int) -> list[Row]:
        """Return the rows at a batch size that have a result."""
        return [row for row in self.at(batch_size) if row.outcomes]


def perform(images: Images, task: Task, protocol: Protocol) -> Outcome:
    """Find the rates at which a network trains, then train it at one of them."""
    steps = protocol.steps(task.batch_size)

    def attempt(rate: float, steps: int, measure: bool) -> Run:
        network = protocol.network(images, task.normalizer, task.seed)
        schedule = Schedule(task.batch_size, steps, rate, task.seed)
        return train(network, images, schedule, measure)

    ceiling = BELOW_GUESSING * math.log(len(images.classes))
    trials: dict[float, float] = {}
    largest = None
    for rate in RATES:
        trials[rate] = attempt(rate, max(4, steps // TRIAL), measure=False).last_loss()
        if trials[rate] < ceiling:
            largest = rate
        elif largest:
            break
    rate = protocol.rate or min(trials, key=lambda rate: trials[rate])
    return Outcome(trials, largest, rate, attempt(rate, steps, measure=True))


def work(protocol: Protocol, setting: Setting, task: Task) -> Outcome:
    """Perform a task in a worker process, which reads the images once."""
    return perform(setting.images, task, protocol)


def begin(protocol: Protocol, images: Images, folder: Path | None = None) -> Comparison:
    """Return a comparison without a result yet, with the reasons of the rows that do not apply."""
    rows = [
        Row(
            name,
            batch_size,
            protocol.steps(batch_size),
            reason=protocol.reason(name, batch_size),
        )
        for batch_size in protocol.batch_sizes
        for name in protocol.normalizers
    ]
    return Comparison(protocol, images, folder, rows, total=len(protocol.tasks()))


def compare(comparison: Comparison, workers: int) -> Iterator[Task]:
    """Fill a comparison in, yielding each task as it is done. A failed run is noted, not fatal."""
    protocol = comparison.protocol
    rows = {(row.normalizer, row.batch_size): row for row in comparison.rows}
    setting = Setting(data=(comparison.folder,) if comparison.folder else ())
    with (
        processes(workers) as executor,
        closing(gather(executor, partial(work, protocol, setting), protocol.tasks())) as finished,
    ):
        for task, outcome in finished:
            comparison.finished += 1
            if isinstance(outcome, Exception):
                where = f"{task.normalizer}, batch size {task.batch_size}, seed {task.seed}"
                comparison.failures.append(f"{where}: {type(outcome).__name__}: {outcome}")
            else:
                rows[task.normalizer, task.batch_size].outcomes[task.seed] = outcome
            yield task

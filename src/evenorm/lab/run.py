"""Runs experiments seed by seed, on any executor, and keeps every seed as it finishes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch

from evenorm.lab.catalog import choose
from evenorm.lab.experiment import Experiment, Observation, Result
from evenorm.lab.setting import SEEDS, Setting
from evenorm.lab.store import Store
from evenorm.lab.workers import available, check, gather, processes

# Where finished seeds are kept unless another folder is given.
FOLDER = Path(".evenorm-lab")
# Measuring takes torch's random state and thread count: one at a time in a process, whatever the executor.
_turn = threading.Lock()


@dataclass(frozen=True)
class Task:
    """One seed of one experiment."""

    experiment: Experiment
    setting: Setting
    seed: int


def measure(task: Task) -> Observation:
    """Measure one seed, on one thread; the same seed gives the same numbers, times apart.

    Raises:
        ValueError: the experiment says nothing of one of its claims.
        Stopped: the pool that this process belongs to closes.
    """
    check()
    with _turn, torch.random.fork_rng(devices=[]):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(task.seed)
        try:
            observation = task.experiment.measure(task.setting, task.seed)
        finally:
            torch.set_num_threads(threads)
    said = observation.effects.keys() | observation.reasons.keys()
    silent = [claim.key for claim in task.experiment.claims if claim.key not in said]
    if silent:
        raise ValueError(f"{task.experiment.slug}: no effect and no reason for {', '.join(silent)}")
    return observation


def recall(experiments: Iterable[Experiment], setting: Setting, store: Store, seeds: int | None = None) -> list[Result]:
    """Return the results of what is known already."""
    results = []
    for experiment in experiments:
        found = {seed: store.load(experiment, setting, seed) for seed in range(seeds or SEEDS[setting.scale])}
        results.append(Result(experiment, setting, {seed: one for seed, one in found.items() if one}))
    return results


def missing(results: Sequence[Result], seeds: int | None = None) -> list[Task]:
    """Return what is still to be measured, experiment by experiment."""
    return [
        Task(result.experiment, result.setting, seed)
        for result in results
        for seed in range(seeds or SEEDS[result.setting.scale])
        if seed not in result.observations
    ]


def advance(
    results: Sequence[Result], tasks: Sequence[Task], store: Store, executor: Executor
) -> Generator[Task, None, None]:
    """Measure, filling the results in and yielding each task as it is done. A failed seed is noted, not fatal."""
    by_slug = {result.experiment.slug: result for result in results}
    with closing(gather(executor, measure, tasks)) as finished:
        for task, observation in finished:
            result = by_slug[task.experiment.slug]
            if isinstance(observation, Exception):
                result.failures[task.seed] = f"{type(observation).__name__}: {observation}"
            else:
                store.save(task.experiment, task.setting, task.seed, observation)
                result.observations[task.seed] = observation
            yield task


def run(
    names: Sequence[str] = (),
    setting: Setting | None = None,
    *,
    seeds: int | None = None,
    executor: Executor | None = None,
    folder: Path = FOLDER,
) -> list[Result]:
    """Run experiments to their end.

    Args:
        names: of the experiments; all of them unless given.
        setting: scale and data; quick and on what ships unless given.
        seeds: how many; as many as the scale asks for unless given.
        executor: carries the runs: anything whose ``submit`` gives a ``concurrent.futures.Future``, such as Dask's
            ``client.get_executor()``. Where the lab is installed on the workers, a cluster serves. Unless given,
            one process for each processor.
        folder: where finished seeds are kept.
    """
    store = Store(folder)
    results = recall(choose(names), setting or Setting(), store, seeds)
    tasks = missing(results, seeds)
    with ExitStack() as stack:
        if tasks:
            carrier = executor or stack.enter_context(processes(min(available(), len(tasks))))
            for _ in advance(results, tasks, store, carrier):
                pass
    return results

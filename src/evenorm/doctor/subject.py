"""The subject of an examination: a model and what came with it, and the experiments made on it, each once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.inputs import Inputs
from evenorm.doctor.modes import evaluate
from evenorm.doctor.record import Record
from evenorm.doctor.sites import Site, find_sites
from evenorm.doctor.snapshot import Snapshot
from evenorm.doctor.trace import Trace, trace
from evenorm.surgery.loading import brief

__all__ = ["Intent", "Subject"]

# Classes that torch gives to a module whose parameters it distributes.
SHARDING = {"FSDPModule", "FullyShardedDataParallel"}

Intent = Literal["train", "finetune", "infer", "export"]
Result = TypeVar("Result")


class Subject:
    """What rules look at. Every experiment starts from the model as it was given, and ends there.

    Attributes:
        model: the model.
        inputs: one batch, or ``None``.
        loader, optimizer, state_dict, reference, config, record: as given, or ``None``.
        intent: what the model is for.
        causal: whether outputs must not depend on later inputs.
        batch_size: of the training, where it is known: given, or the loader's.
        checkpoints: those of all ranks, where several were given; ``state_dict`` is the first.
        notes: what could not be examined, and why.
        failure: why the model did not run, though there was a batch; ``None`` otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs | None = None,
        *,
        loader: Iterable[Any] | None = None,
        optimizer: Optimizer | None = None,
        state_dict: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
        reference: nn.Module | None = None,
        config: Any = None,
        record: Record | None = None,
        intent: Intent = "train",
        causal: bool = False,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.loader, self.optimizer = model, loader, optimizer
        self.reference, self.config, self.record = reference, config, record
        held = [] if state_dict is None else [state_dict] if isinstance(state_dict, Mapping) else state_dict
        self.checkpoints: tuple[Mapping[str, Tensor], ...] = tuple(held)
        self.state_dict = self.checkpoints[0] if self.checkpoints else None
        self.intent, self.causal = intent, causal
        self.batch_size = batch_size or getattr(loader, "batch_size", None)
        self.notes: list[str] = []
        self.failure: str | None = None
        self.snapshot = Snapshot(model)
        self._results: dict[Callable[..., Any], Any] = {}
        self.inputs = inputs if inputs is not None or loader is None else self._first(loader)
        if self.is_sharded:
            # A pass of one process alone would wait for the others for ever.
            self.inputs = None

    @property
    def trains(self) -> bool:
        """Whether the model is to be trained."""
        return self.intent in ("train", "finetune")

    @cached_property
    def is_sharded(self) -> bool:
        """Whether this process holds a part of the parameters only (``fully_shard``, tensor parallelism)."""
        names = {base.__name__ for module in self.model.modules() for base in type(module).__mro__}
        return bool(names & SHARDING) or any(hasattr(p, "full_tensor") for p in self.model.parameters())

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The normalizers of the model."""
        return find_sites(self.model)

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each parameter and buffer, by its identity."""
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {id(tensor): name for name, tensor in tensors}

    @contextmanager
    def experiment(self) -> Iterator[nn.Module]:
        """Do anything to the model; afterwards it is as it was given. Random draws start from one seed."""
        try:
            with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                yield self.model
        finally:
            try:
                self.snapshot.restore()
            except KeyboardInterrupt:
                # A second Ctrl-C waits until the model is whole.
                self.snapshot.restore()
                raise

    def probe(self, experiment: Callable[[Subject], Result]) -> Result:
        """The result of an experiment, made when it is first asked for."""
        if experiment not in self._results:
            self._results[experiment] = experiment(self)
        return self._results[experiment]

    @cached_property
    def trace(self) -> Trace | None:
        """One pass as the intent has it: training with gradients, or as the model stands; ``None`` without a batch."""
        if self.inputs is None:
            return None
        with self.experiment() as model:
            if self.trains and not model.training:
                model.train()
            found = trace(model, self.inputs, self.sites, backward=self.trains)
        if found.failure is not None:
            self._failed(f"the model did not run this batch: {brief(found.failure)}")
        return found

    @cached_property
    def evaluation(self) -> Trace | None:
        """One pass after ``eval()``, without gradients; ``None`` where the batch is missing or does not run."""
        if self.inputs is None:
            return None
        with self.experiment() as model:
            evaluate(model)
            found = trace(model, self.inputs, self.sites)
        return found if found.failure is None else None

    def answer(
        self, inputs: Inputs, prepare: Callable[[nn.Module], object] = evaluate, *, seed: int = 0
    ) -> list[Tensor] | None:
        """The model's floating-point outputs without gradients, in evaluation unless prepared otherwise.

        ``None`` if the model cannot take these inputs.
        """
        with self.experiment() as model:
            torch.manual_seed(seed)
            prepare(model)
            found = trace(model, inputs, ())
        return found.outputs if found.failure is None else None

    def _first(self, loader: Iterable[Any]) -> Inputs | None:
        """The loader's first batch; its random order is drawn from a state that is put back."""
        try:
            for item in loader:
                return Inputs.loaded(item, self.model)
        except Exception as failure:
            self._failed(f"the loader gave no batch: {brief(failure)}")
        finally:
            self.snapshot.restore()
        return None

    def _failed(self, reason: str) -> None:
        self.failure = reason
        self.notes.append(reason)

"""Monitor: watches the normalizers of a running training loop, at a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import judge
from evenorm.doctor.inputs import tensors
from evenorm.doctor.record import Forward, Record, SiteCall, Step
from evenorm.doctor.rule import selected
from evenorm.doctor.sites import Site, find_sites, versions
from evenorm.doctor.subject import Subject
from evenorm.doctor.table import Table, gradient_norms, table
from evenorm.doctor.trace import observed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Monitor"]

# Steps that are kept; a long training keeps its first and its last ones.
KEPT = 1000


class Monitor:
    """What the normalizers of a model do while it trains.

    Every call, mode and update is noted; moments of activations and gradients are measured at as many steps as
    ``share`` of the loop's time allows, and at the first.

    Args:
        model: the model that is trained.
        optimizer: its optimizer, whose steps separate the record's; without one, call :meth:`step`.
        share: of the loop's time that measuring may take.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Monitor(model, optimizer) as monitor:
    ...     for _ in range(3):
    ...         model(torch.randn(8, 2)).sum().backward()
    ...         optimizer.step()
    >>> [step.updates for step in monitor.record.steps]
    [{'1': 1}, {'1': 1}, {'1': 1}]
    >>> monitor.examination().ok
    True
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, *, share: float = 0.02) -> None:
        self.model, self.optimizer, self.share = getattr(model, "_orig_mod", model), optimizer, share
        self.sites = find_sites(self.model)
        self.record = Record()
        self._exits = ExitStack()
        self._outer: int | None = None
        self._counts: dict[str, int] = {}
        self._detailed = True
        self.steps = 0
        self._started = self._spent = 0.0

    def __enter__(self) -> Self:
        """Hang the hooks."""
        self._started, self._counts = time.perf_counter(), versions(self.sites)
        hang = self._exits.callback
        hang(self.model.register_forward_pre_hook(self._enter).remove)
        hang(self.model.register_forward_hook(self._leave, always_call=True).remove)
        for site in self.sites:
            hang(site.module.register_forward_hook(self._noting(site), with_kwargs=True).remove)
        hang(self.model.register_load_state_dict_post_hook(self._loaded).remove)
        if self.optimizer is not None:
            hang(self.optimizer.register_step_post_hook(self._stepped).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the hooks off."""
        self._exits.close()
        self._count(self.record.tail)

    def step(self) -> None:
        """One step of the optimizer is done."""
        step = self.record.tail
        self._count(step)
        begun = time.perf_counter()
        step.finite = self._finite()
        if not step.finite and self.record.first_broken is None:
            self.record.first_broken = self.steps
        if self._detailed:
            step.gradients = gradient_norms(self.sites)
        self.steps += 1
        self.record.steps.append(step)
        if len(self.record.steps) > KEPT:
            del self.record.steps[KEPT // 2]
        self.record.tail = Step()
        now = time.perf_counter()
        self._spent += now - begun
        self._detailed = self._spent <= self.share * (now - self._started)

    def examination(self, *, select: Sequence[str] = (), ignore: Sequence[str] = (), **options: Any) -> Examination:
        """What the rules say to the loop so far.

        Args:
            select, ignore: as for :func:`examine`.
            options: further arguments of :func:`examine`: ``loader``, ``intent``, …
        """
        subject = Subject(self.model, optimizer=self.optimizer, record=self.record, **options)
        return judge(subject, selected(select, ignore), {})

    def table(self) -> Table:
        """The newest step that was measured in detail: print it, or ask ``to_dict()`` and ``html()``."""
        for step in reversed(self.record.steps):
            if step.details:
                return table(step.details, step.gradients, step.updates)
        return table(self.record.tail.details, {}, self.record.tail.updates)

    def to_dict(self) -> dict[str, Any]:
        """The table, the number of steps, and the first of them whose gradients were not finite."""
        return {"steps": self.steps, "first non-finite step": self.record.first_broken, **self.table().to_dict()}

    def html(self) -> str:
        """The table as a page of its own."""
        return self.table().html()

    def _enter(self, model: nn.Module, args: Any) -> None:
        forwards = self.record.tail.forwards
        pending = any(forward.gradients and not forward.backward for forward in forwards)
        self._outer = len(forwards)
        forwards.append(Forward(model.training, torch.is_grad_enabled(), pending))

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        forward = self.record.tail.forwards[-1] if self.record.tail.forwards else None
        self._outer = None
        if forward is not None:
            for y in tensors(output):
                if y.requires_grad:
                    y.register_hook(_marking(forward))

    def _noting(self, site: Site) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = next(iter(tensors((args, kwargs))), None)
            if x is None or not x.is_floating_point():
                return
            step, recomputed = self.record.tail, torch._C._current_graph_task_id() != -1
            gradients = torch.is_grad_enabled()
            if self._outer is not None and self._outer < len(step.forwards):
                gradients = step.forwards[self._outer].gradients
            step.calls.append(
                SiteCall(
                    *(site.path, tuple(x.shape), module.training, site.momentum),
                    *(gradients, self._outer, recomputed),
                )
            )
            if self._detailed:
                begun = time.perf_counter()
                step.details.append(observed(site, x.detach(), output, recomputed))
                self._spent += time.perf_counter() - begun

        return note

    def _loaded(self, model: nn.Module, keys: Any) -> None:
        self.record.missing = (*self.record.missing, *keys.missing_keys)
        self.record.unexpected = (*self.record.unexpected, *keys.unexpected_keys)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step()

    def _count(self, step: Step) -> None:
        now = versions(self.sites)
        grown = {path: number - self._counts.get(path, number) for path, number in now.items()}
        step.updates = {path: updates for path, updates in grown.items() if updates}
        self._counts = now

    def _finite(self) -> bool:
        """Whether the gradients of the normalizers are finite; those of a broken step are not."""
        grads = [p.grad for site in self.sites for p in site.parameters.values() if p.grad is not None]
        if not grads:
            return True
        return bool(torch.stack([norm.float() for norm in torch._foreach_norm(grads)]).isfinite().all())


def _marking(forward: Forward) -> Callable[[Tensor], None]:
    def mark(gradient: Tensor) -> None:
        forward.backward = True

    return mark

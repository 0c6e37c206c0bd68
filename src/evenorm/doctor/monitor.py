"""Monitor: watches the normalizers of a running training loop, at a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import judge
from evenorm.doctor.excerpt import thinned
from evenorm.doctor.inputs import tensors
from evenorm.doctor.record import Forward, Record, SiteCall, Step
from evenorm.doctor.rule import selected
from evenorm.doctor.sites import Site, find_sites, versions
from evenorm.doctor.subject import Subject
from evenorm.doctor.table import Table, table
from evenorm.doctor.trace import observed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Monitor"]

# Steps that are kept; a long training keeps its first and its last ones.
KEPT = 1000
# Calls of one site that the first step measures at most: a loop without steps has no other.
MOST = 8


class Monitor:
    """What the normalizers of a model do while it trains.

    Every call, mode, update and gradient norm is noted. Moments of activations are measured for all layers in the
    first step, and for as many in turn in each later one as ``share`` of the loop's time allows, what is always
    noted included. May be entered again: the loop goes on.

    Args:
        model: the model that is trained.
        optimizer: its optimizer, whose steps separate the record's; without one, call :meth:`step`.
        share: of the loop's time that watching may take.

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

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, *, share: float = 0.01) -> None:
        self.model, self.optimizer, self.share = getattr(model, "_orig_mod", model), optimizer, share
        self.sites = find_sites(self.model)
        self.record = Record()
        self._exits = ExitStack()
        self._outer: int | None = None
        self._counts: dict[str, int] = {}
        self._account = Account(share)
        self._turn = 0
        self._measuring: set[str] = set()

    @property
    def steps(self) -> int:
        """Steps of the optimizer so far."""
        return self.record.tail.number

    def __enter__(self) -> Self:
        """Hang the hooks."""
        self._counts = versions(self.sites)
        self._account.open()
        hang = self._exits.callback
        hang(self.model.register_forward_pre_hook(self._enter).remove)
        hang(self.model.register_forward_hook(self._leave, always_call=True).remove)
        for place, site in enumerate(self.sites):
            hang(site.module.register_forward_hook(self._noting(place, site), with_kwargs=True).remove)
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
        self._account.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the model takes the hooks along; what it does is not the loop's, and is left out."""
        return self

    def step(self) -> None:
        """One step of the optimizer is done."""
        with self._account.spending():
            step = self.record.tail
            self._count(step)
            step.names, step.norms = gradient_norms(self.model)
            if not self._measuring:
                # The layer whose turn it was may not run at all.
                self._turn += 1
            self._turn %= max(len(self.sites), 1)
            self._measuring.clear()
            self.record.close(KEPT)
        if step.number == 0:
            # The first step is measured whole, whatever that costs.
            self._account.restart()

    def examination(self, *, select: Sequence[str] = (), ignore: Sequence[str] = (), **options: Any) -> Examination:
        """What the rules say to the loop so far.

        Args:
            select, ignore: as for :func:`examine`.
            options: further arguments of :func:`examine`: ``loader``, ``intent``, …
        """
        subject = Subject(self.model, optimizer=self.optimizer, record=self.record, **options)
        return judge(subject, selected(select, ignore), {})

    def table(self) -> Table:
        """Each layer when it was last measured: print it, or ask ``to_dict()`` and ``html()``."""
        newest = [self.record.measured[site.path][-1] for site in self.sites if site.path in self.record.measured]
        last = self.record.steps[-1] if self.record.steps else self.record.tail
        return table((call for measured in newest for _, call in measured.calls), last.gradients, last.updates)

    def to_dict(self) -> dict[str, Any]:
        """The table, the number of steps, and the first of them whose gradients were not finite."""
        return {"steps": self.steps, "first non-finite step": self.record.first_broken, **self.table().to_dict()}

    def html(self) -> str:
        """The table as a page of its own."""
        return self.table().html()

    def _enter(self, model: nn.Module, args: Any) -> None:
        if model is not self.model:
            return
        forwards = self.record.tail.forwards
        pending = any(forward.gradients and not forward.backward for forward in forwards)
        self._outer = len(forwards)
        to_inputs = any(x.requires_grad for x in tensors(args))
        forwards.append(Forward(model.training, torch.is_grad_enabled(), pending, to_inputs))

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if model is not self.model:
            return
        forward = self.record.tail.forwards[-1] if self.record.tail.forwards else None
        self._outer = None
        if forward is not None:
            for y in tensors(output):
                if y.requires_grad:
                    y.register_hook(_marking(forward))

    def _noting(self, place: int, site: Site) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with self._account.spending():
                x = next(iter(tensors((args, kwargs))), None)
                if x is not None and x.is_floating_point() and module is site.module:
                    self._note(place, site, x.detach(), output)

        return note

    def _note(self, place: int, site: Site, x: Tensor, output: Any) -> None:
        step, recomputed = self.record.tail, torch._C._current_graph_task_id() != -1
        gradients = torch.is_grad_enabled()
        if self._outer is not None and self._outer < len(step.forwards):
            gradients = step.forwards[self._outer].gradients
        noted = SiteCall(
            *(site.path, tuple(x.shape), site.training, site.momentum),
            *(gradients, self._outer, recomputed),
        )
        step.calls.append(noted)
        if self._is_due(place, site):
            self.record.measure(noted, observed(site, x, output, recomputed, thinned))

    def _is_due(self, place: int, site: Site) -> bool:
        """Whether to measure this call: all in the first step; then in turn, all calls of a layer in one step."""
        if self.steps == 0:
            known = self.record.measured.get(site.path)
            return not known or len(known[-1].calls) < MOST
        if place == self._turn and self._account.has_room():
            self._turn += 1
            self._measuring.add(site.path)
        return site.path in self._measuring

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


class Account:
    """The time of a loop while it is watched, and of it what watching spent."""

    def __init__(self, share: float) -> None:
        self.share, self.spent, self._passed = share, 0.0, 0.0
        self._since: float | None = None

    def open(self) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Forget what was."""
        self.spent = self._passed = 0.0
        if self._since is not None:
            self.open()

    def close(self) -> None:
        """Stop the clock."""
        if self._since is not None:
            self._passed += time.perf_counter() - self._since
        self._since = None

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What runs inside is spent."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - begun

    def has_room(self) -> bool:
        """Whether less is spent than the share."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.spent < self.share * (self._passed + running)


def gradient_norms(model: nn.Module) -> tuple[tuple[str, ...], Tensor | None]:
    """Names and norms of the gradients that lie in ``.grad`` now; the norms stay on their device."""
    named = {
        name: p.grad.coalesce().values() if p.grad.is_sparse else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    if not named:
        return (), None
    device = next(iter(named.values())).device
    norms = torch.stack([norm.float().to(device) for norm in torch._foreach_norm(list(named.values()))])
    # A sharded gradient's norm is that of all its parts.
    return tuple(named), norms.full_tensor() if hasattr(norms, "full_tensor") else norms


def _marking(forward: Forward) -> Callable[[Tensor], None]:
    def mark(gradient: Tensor) -> None:
        forward.backward = True
        # Gradients are recorded inside a backward pass only under create_graph=True.
        forward.penalized |= forward.to_inputs and torch.is_grad_enabled()

    return mark

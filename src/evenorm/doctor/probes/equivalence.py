"""M12, equivalence: do a model and the one it was made from answer alike, as a whole and norm by norm?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenorm.doctor.modes import evaluate
from evenorm.doctor.probes.alone import alone, answer, sample
from evenorm.doctor.sites import Site
from evenorm.doctor.snapshot import undisturbed
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import trace

__all__ = ["Swap", "equivalence", "swaps"]

TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(frozen=True)
class Equivalence:
    """How far the answers in evaluation differ, relative to their size.

    ``fresh`` says that the reference's statistics are still 0 and 1: then many a mistake does not show.
    """

    error: float
    tolerance: float
    fresh: bool

    @property
    def holds(self) -> bool:
        """Whether rounding explains it."""
        return self.error <= self.tolerance


def equivalence(subject: Subject) -> Equivalence | None:
    """Of the whole model and its reference; ``None`` where one does not run, or is quantized."""
    reference, inputs = subject.reference, subject.inputs
    if reference is None or inputs is None or _is_quantized(subject.model):
        return None
    found = subject.answer(inputs, evaluate)
    with undisturbed(reference):
        evaluate(reference)
        expected = trace(reference, inputs, ())
    if found is None or expected.failure is not None or len(found) != len(expected.outputs) or not found:
        return None
    errors = [_error(a, b) for a, b in zip(expected.outputs, found, strict=True)]
    tolerance = max(TOLERANCE.get(y.dtype, 1e-3) for y in found)
    histories = [b for name, b in reference.named_buffers() if name.endswith(("running_mean", "running_var"))]
    fresh = bool(histories) and all(bool(((b == 0) | (b == 1)).all()) for b in histories)
    return Equivalence(max(errors), tolerance, fresh)


def _is_quantized(model: nn.Module) -> bool:
    return any("quantized" in type(module).__module__ for module in model.modules())


def _error(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape or not found.isfinite().all():
        return float("inf")
    expected, found = expected.detach().double(), found.detach().double()
    size, error = float(expected.square().mean().sqrt()), float((expected - found).abs().max())
    return error / size if size else error


@dataclass(frozen=True)
class Swap:
    """A normalizer in another's place, and what got lost on the way.

    Attributes:
        before: the reference's.
        after: the model's.
        lost: eps, or what the layer did besides normalizing (an activation).
        error: of its answers on random statistics, relative.
    """

    before: Site
    after: Site
    lost: Literal["eps", "activation"]
    error: float


def swaps(subject: Subject) -> list[Swap]:
    """The normalizers that stand where the reference has another, and do not compute what that does."""
    if subject.reference is None:
        return []
    other = Subject(subject.reference)
    before = {site.path: site for site in other.sites if site.kind == "batch"}
    found = (_compared(before[site.path], site, other) for site in subject.sites if site.path in before)
    return [swap for swap in found if swap is not None]


def _compared(before: Site, after: Site, other: Subject) -> Swap | None:
    """On random statistics, one channel almost constant: fresh ones hide everything."""
    x, old, new = sample(before, other), alone(before), alone(after)
    if type(before.module) is type(after.module) and before.eps == after.eps:
        return None
    if x is None or old is None or new is None:
        return None
    _randomize(old.module, new.module)
    expected, found = answer(old, x), answer(new, x)
    if expected is None or found is None or expected.shape != found.shape:
        return None
    if not new.remembers:
        groups = getattr(new.module, "num_groups", None)
        lost = isinstance(groups, int) and _does_more(old, x, expected) and not _does_more(new, x, found, groups)
        return Swap(before, after, "activation", _error(expected, found)) if lost else None
    error = _error(expected, found)
    if error <= 1e-3:
        return None
    if old.eps is not None and new.eps is not None and old.eps != new.eps:
        new.set_eps(old.eps)
        again = answer(new, x)
        if again is not None and _error(expected, again) <= 1e-3:
            return Swap(before, after, "eps", error)
    return Swap(before, after, "activation", error)


def _randomize(*modules: nn.Module) -> None:
    """The same random state for both, by name; one channel of almost no variance."""
    generator = torch.Generator().manual_seed(0)
    state = modules[0].state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            value = torch.rand(tensor.shape, generator=generator) + 0.5
            if name.endswith("running_var") and value.numel():
                value[0] = 1e-5
            state[name] = value.to(tensor)
    for module in modules:
        module.eval()
        module.load_state_dict(state, strict=False)


def _does_more(site: Site, x: Tensor, y: Tensor, groups: int | None = None) -> bool:
    """Whether it does anything besides normalizing."""
    eps = site.eps or 0.0
    if groups is None:
        plain = functional.batch_norm(x, site.running_mean, site.running_var, site.weight, site.bias, eps=eps)
    else:
        plain = functional.group_norm(x, groups, site.weight, site.bias, eps)
    return _error(plain, y) > 1e-3

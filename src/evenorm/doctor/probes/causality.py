"""M8, causality: does a normalizer carry later inputs back to earlier outputs?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.inputs import Inputs, tensors
from evenorm.doctor.modes import evaluate
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["leaks"]

TOLERANCE = 1e-3
# Fewer positions have no past and future to speak of.
SHORTEST = 4


def leaks(subject: Subject) -> dict[str, float]:
    """By path of each normalizer through which the future leaks: how far its earlier outputs move, relative.

    The time axis is the one along which the model without its normalizers is causal. A normalizer leaks if its
    earlier inputs stay and its earlier outputs move, when the end of the model's input is exchanged.
    """
    inputs = subject.inputs
    first = None if inputs is None else next((t for t in tensors((inputs.args, inputs.kwargs)) if t.dim() > 1), None)
    if inputs is None or first is None:
        return {}
    order = [2, *range(first.dim() - 1, 0, -1)] if first.dim() == 5 else list(range(first.dim() - 1, 0, -1))
    for axis in order:
        if first.shape[axis] < SHORTEST:
            continue
        other = _with_another_end(inputs, first, axis)
        if _is_causal_without_norms(subject, inputs, other):
            return _leaking(subject, inputs, other)
    return {}


def _with_another_end(inputs: Inputs, first: Tensor, axis: int) -> Inputs:
    """The batch with the second half of the positions exchanged."""
    start, generator = first.shape[axis] // 2, torch.Generator().manual_seed(0)
    changed = first.clone()
    end = changed.narrow(axis, start, first.shape[axis] - start)
    if first.is_floating_point():
        end.add_(1 + torch.randn(end.shape, generator=generator).to(end))
    else:
        order = torch.randperm(end.numel(), generator=generator).to(end.device)
        end.copy_(end.flatten()[order].reshape(end.shape).flip(axis))
    return inputs.mapped(lambda t: changed if t is first else t)


def _is_causal_without_norms(subject: Subject, inputs: Inputs, other: Inputs) -> bool:
    def bypass(model: nn.Module) -> None:
        evaluate(model)
        for site in subject.sites:
            site.module.register_forward_hook(_input_instead, with_kwargs=True)

    before, after = subject.answer(inputs, bypass), subject.answer(other, bypass)
    return before is not None and after is not None and any(_kept(a, b) for a, b in zip(before, after, strict=False))


def _input_instead(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    x = next(iter(tensors((args, kwargs))), None)
    return x if isinstance(output, Tensor) and x is not None and x.shape == output.shape else output


def _kept(before: Tensor, after: Tensor) -> tuple[int, int] | None:
    """An axis along which a beginning stays and the end moves: the axis, and how many positions stay."""
    if before.shape != after.shape or not before.is_floating_point():
        return None
    size = float(before.float().abs().mean())
    moved = (before - after).float().abs() > TOLERANCE * max(size, 1e-30)
    for axis in range(1, before.dim()):
        along = moved.movedim(axis, 0).flatten(1).any(1)
        stays = int(along.int().argmax()) if bool(along.any()) else 0
        if stays >= max(before.shape[axis] // 4, 1):
            return axis, stays
    return None


def _leaking(subject: Subject, inputs: Inputs, other: Inputs) -> dict[str, float]:
    found: dict[str, float] = {}
    for before, after in zip(_seen(subject, inputs), _seen(subject, other), strict=False):
        site, x, y = before
        kept = _kept(x, after[1]) if after[0] is site else None
        if kept is None or y.shape != x.shape or after[2].shape != y.shape:
            continue
        axis, stays = kept
        early, moved = y.narrow(axis, 0, stays).float(), after[2].narrow(axis, 0, stays).float()
        size = float(early.square().mean().sqrt())
        change = float((early - moved).abs().max()) / size if size else 0.0
        if change > 2 * TOLERANCE:
            found.setdefault(site.path, change)
    return found


def _seen(subject: Subject, inputs: Inputs) -> list[tuple[Site, Tensor, Tensor]]:
    """Inputs and outputs of the normalizers in evaluation, in order."""
    seen: list[tuple[Site, Tensor, Tensor]] = []

    def noting(site: Site) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x, y = next(iter(tensors((args, kwargs))), None), next(iter(tensors(output)), None)
            if x is not None and y is not None:
                seen.append((site, x.detach().clone(), y.detach().clone()))

        return note

    def watch(model: nn.Module) -> None:
        evaluate(model)
        for site in subject.sites:
            site.module.register_forward_hook(noting(site), with_kwargs=True)

    subject.answer(inputs, watch)
    return seen

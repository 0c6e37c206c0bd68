"""M7, padding invariance: do padded positions change what a normalizer makes of the valid ones?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenorm.doctor.inputs import Inputs, tensors
from evenorm.doctor.modes import evaluate
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

__all__ = ["Marked", "marked", "padding"]

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Padded:
    """A batch of items of several lengths: the valid positions (N, T), and the batch with yet more padding."""

    inputs: Inputs
    valid: Tensor
    longer: Inputs


@dataclass(frozen=True)
class Marked:
    """What a batch says of its items' lengths.

    Attributes:
        tensor: the mask (N, T), or the lengths (N).
        valid: the valid positions (N, T).
        keeps: what marks them in a mask; ``None`` for lengths.
    """

    tensor: Tensor
    valid: Tensor
    keeps: Tensor | None


@dataclass(frozen=True)
class Seen:
    """One call of a site: all that came and went."""

    site: Site
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


def padding(subject: Subject) -> dict[str, float]:
    """By path: how far the valid outputs of a site move, relative to their size, when padded values do.

    Nothing is found where the model's forward takes neither a mask nor lengths, or where its own answer does not
    depend on the amount of padding.
    """
    padded = _padded(subject)
    if padded is None:
        return {}
    found: dict[str, float] = {}
    with subject.experiment() as model:
        for seen in _calls(subject, model, padded.inputs):
            change = _change(seen, padded.valid)
            if change is not None and change > TOLERANCE:
                found.setdefault(seen.site.path, change)
    return found if found and _answer_depends(subject, padded) else {}


def marked(subject: Subject) -> Marked | None:
    """The mask, or the lengths, that the batch comes with; ``None`` if it has none."""
    if subject.inputs is None:
        return None
    named = _named(subject.model, subject.inputs)
    for name, tensor in named.items():
        if tensor.dim() == 2 and "mask" in name and _is_binary(tensor):
            keeps = _value_of_valid(tensor)
            if keeps is not None:
                return Marked(tensor, tensor == keeps, keeps)
        if tensor.dim() == 1 and "len" in name and not tensor.is_floating_point() and tensor.numel() > 1:
            longest, samples = int(tensor.max()), len(tensor)
            timed = any(t.dim() > 1 and t.shape[0] == samples and longest in t.shape[1:] for t in named.values())
            if timed and longest > 1:
                positions = torch.arange(longest, device=tensor.device)
                return Marked(tensor, positions[None] < tensor[:, None], None)
    return None


def _padded(subject: Subject) -> Padded | None:
    """The batch with its mask or lengths; where every item is full, half of them are made shorter."""
    found = marked(subject)
    if found is None or subject.inputs is None:
        return None
    valid, keeps = _with_short_items(found.valid), found.keeps
    if keeps is None:
        return _extended(subject.inputs, {id(found.tensor): valid.sum(1).to(found.tensor.dtype)}, valid)
    mask = torch.where(valid, keeps, ~keeps if keeps.dtype == torch.bool else 1 - keeps).to(found.tensor.dtype)
    return _extended(subject.inputs, {id(found.tensor): mask}, valid)


def _named(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors that the forward takes, by the names of its parameters."""
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments
    except (TypeError, ValueError):
        return {}
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        if isinstance(value, tuple):
            # A wrapper's *args have no names: those of the wrapped model count.
            inner = next((m for m in model.children() if not isinstance(m, nn.ModuleList)), None)
            lists = (m[0] for m in model.children() if isinstance(m, nn.ModuleList) and len(m) == 1)
            inner = next(lists, inner)
            return _named(inner, inputs) if inner is not None else {}
        flat.update(value if isinstance(value, dict) else {name: value})
    return {name.lower(): value for name, value in flat.items() if isinstance(value, Tensor)}


def _is_binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _value_of_valid(mask: Tensor) -> Tensor | None:
    """What marks valid positions: every item begins with one, or, padded on the left, ends with one."""
    for column in (mask[:, 0], mask[:, -1]):
        if bool((column == column[0]).all()):
            return column[0]
    return None


def _with_short_items(valid: Tensor) -> Tensor:
    if not bool(valid.all()) or valid.shape[1] < 2:
        return valid
    valid = valid.clone()
    valid[len(valid) // 2 :, -(valid.shape[1] // 2) :] = False
    return valid


def _extended(inputs: Inputs, replaced: dict[int, Tensor], valid: Tensor) -> Padded:
    """The batch, and the batch with half as many positions again, all of them padding."""
    samples, length = valid.shape
    added = max(length // 2, 1)
    masks = {id(mask) for mask in replaced.values()}
    batch = inputs.mapped(lambda t: replaced.get(id(t), t))

    def extend(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2 or tensor.shape[0] != samples or length not in tensor.shape[1:]:
            return tensor
        axis = 1 + list(tensor.shape[1:]).index(length)
        if id(tensor) in masks:
            # A mask ends with what marks padding.
            end = tensor.flatten()[(~valid).flatten().nonzero()[0]]
            return torch.cat([tensor, end.expand(samples, added)], 1)
        pads = [0] * (2 * (tensor.dim() - axis) - 1) + [added]
        return functional.pad(tensor, pads)

    return Padded(batch, valid, batch.mapped(extend))


def _prepare(subject: Subject, model: nn.Module) -> None:
    """Evaluation, but for the normalizers of a model that trains."""
    learning = [site for site in subject.sites if site.training or not model.training]
    evaluate(model)
    for site in learning if subject.trains else []:
        site.module.train()


def _calls(subject: Subject, model: nn.Module, inputs: Inputs) -> list[Seen]:
    """Run the model and note the calls of its sites."""
    seen: list[Seen] = []
    _prepare(subject, model)

    def noting(site: Site) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen.append(Seen(site, args, kwargs, output))

        return note

    hooks = [site.module.register_forward_hook(noting(site), with_kwargs=True) for site in subject.sites]
    try:
        with torch.no_grad():
            inputs(model)
    except Exception:
        # The trace says what the model raised.
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _change(seen: Seen, valid: Tensor) -> float | None:
    """Call the site once more, with other values at the padded positions."""
    x = next(iter(tensors((seen.args, seen.kwargs))), None)
    y = next(iter(tensors(seen.output)), None)
    if x is None or y is None or x.shape != y.shape or not x.is_floating_point():
        return None
    mask = _placed(valid.to(x.device), x)
    if mask is None or bool(mask.all()):
        return None
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    other = torch.where(mask, x, x + 3 * x.float().std().to(x) * noise + 1)

    def exchanged(t: Tensor) -> Tensor:
        return other if t is x else t

    with torch.no_grad():
        try:
            again = Inputs(seen.args, seen.kwargs).mapped(exchanged)(seen.site.module)
        except Exception:
            return None
    z = next(iter(tensors(again)), y)
    size = float(y[mask].float().square().mean().sqrt())
    return float((y - z)[mask].float().abs().max()) / size if size else None


def _placed(valid: Tensor, x: Tensor) -> Tensor | None:
    """The mask (N, T) where x has these axes: batch first, time first, or both in one."""
    samples, length = valid.shape
    if x.shape[0] == samples and list(x.shape[1:]).count(length) == 1:
        axis = 1 + list(x.shape[1:]).index(length)
        shape = [samples if i == 0 else length if i == axis else 1 for i in range(x.dim())]
        return valid.reshape(shape).expand(x.shape)
    if x.dim() > 1 and tuple(x.shape[:2]) == (length, samples):
        return valid.T.reshape(length, samples, *[1] * (x.dim() - 2)).expand(x.shape)
    if x.shape[0] == samples * length and samples > 1:
        # Which comes first is not to be seen; a mask of rows that is wrong finds the same dependence.
        return valid.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    return None


def _answer_depends(subject: Subject, padded: Padded) -> bool:
    """Whether more padding changes what the model answers at valid positions; also where it cannot be told."""

    def prepare(model: nn.Module) -> None:
        _prepare(subject, model)

    short, long = subject.answer(padded.inputs, prepare), subject.answer(padded.longer, prepare)
    if not short or not long:
        return True
    length = padded.valid.shape[1]
    a, b = short[0], long[0]
    mask: Tensor | None = torch.ones_like(a, dtype=torch.bool)
    if a.shape != b.shape:
        if a.dim() != b.dim() or length not in a.shape:
            return True
        axis = list(a.shape).index(length)
        b = b.narrow(axis, 0, length) if b.shape[axis] >= length else b
        mask = _placed(padded.valid.to(a.device), a)
    if a.shape != b.shape or mask is None:
        return True
    size = float(a[mask].float().square().mean().sqrt())
    return not float((a - b)[mask].float().abs().max()) <= TOLERANCE * size

"""How a history takes a batch in."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.moments import Moments
from evenorm.statistics.average import Cumulative, Running
from evenorm.statistics.history import History, Window
from evenorm.statistics.source import Source

__all__ = ["absorbed", "refuse"]


def absorbed(source: Source, history: History, moments: Moments, axes: tuple[int, ...], caller: object) -> History:
    """The history after these moments; a new value, nothing is written.

    A batch that is not finite, and a group with fewer than two values, leave it as it was.

    Args:
        source: where the moments come from.
        history: what is remembered so far.
        moments: of this batch, merged with all that it is to be merged with.
        axes: those of the moments that the history averages over.
        caller: who is named in a warning.
    """
    average = source.average
    if not isinstance(average, (Running, Cumulative)):
        return history
    if not history.window:
        return _averaged(average, history, moments, axes, caller)
    return _accumulated(source, average, history, history.window, moments, axes, caller)


def _averaged(
    average: Running | Cumulative, history: History, moments: Moments, axes: tuple[int, ...], caller: object
) -> History:
    mean, variance = (t.reshape(history.mean.shape) for t in moments.averaged(axes, average.variance))
    values = history.values
    finite = torch.isfinite(variance.sum())
    concrete = _is_concrete(finite)
    if concrete and not bool(finite):
        refuse(average, caller)
        return history._replace(skipped=_plus(history.skipped, 1))
    if not concrete and average.nonfinite == "raise":
        torch._assert_async(finite, f"{caller}: a batch holds values that are not finite")
    if average.variance == "population":
        whole = _population(history, moments.pooled(axes))
        new_mean, new_variance, values = whole.mean, whole.unbiased, torch.as_tensor(whole.count)
    else:
        share = average.share(history.updates)
        new_mean = torch.lerp(history.mean.to(mean.dtype), mean, share)
        new_variance = torch.lerp(history.variance.to(mean.dtype), variance, share)
    if concrete and not isinstance(moments.count, Tensor):
        return history._replace(mean=new_mean, variance=new_variance, updates=_plus(history.updates, 1), values=values)
    known = finite
    if isinstance(moments.count, Tensor):
        count = moments.count.expand(moments.mean.shape)
        known = known & ((count.sum(axes) if axes else count).reshape(mean.shape) > 1)
    if values is not None and history.values is not None:
        values = torch.where(known, values, history.values)
    return history._replace(
        values=values,
        mean=torch.where(known, new_mean, history.mean.to(mean.dtype)),
        variance=torch.where(known, new_variance, history.variance.to(mean.dtype)),
        updates=_plus(history.updates, known.any()),
        skipped=_plus(history.skipped, ~finite),
    )


def _population(history: History, batch: Moments) -> Moments:
    """The moments of all that was seen, this batch included."""
    shape = history.mean.shape
    count = torch.as_tensor(batch.count, dtype=batch.mean.dtype, device=batch.mean.device).expand(batch.mean.shape)
    batch = Moments(count.reshape(shape), batch.mean.reshape(shape), batch.M2.reshape(shape))
    # Where nobody counted, after loading a state dict for example, the batches before were as large as this one.
    seen: Tensor = torch.as_tensor(batch.count) * (0 if history.updates is None else history.updates)
    if history.values is not None:
        seen = torch.where(history.values > 0, history.values, seen)
    variance = history.variance.to(batch.mean.dtype)
    return Moments(seen, history.mean.to(batch.mean.dtype), variance * (seen - 1).clamp_min(0)).merge(batch)


def _accumulated(
    source: Source,
    average: Running | Cumulative,
    history: History,
    window: Window,
    moments: Moments,
    axes: tuple[int, ...],
    caller: object,
) -> History:
    assert source.window is not None
    finite = torch.isfinite(moments.M2.sum())
    if _is_concrete(finite) and not bool(finite):
        refuse(average, caller)
    merged = window.moments.merge(moments)
    count = torch.as_tensor(merged.count, dtype=window.values.dtype, device=window.values.device)
    new = (count.expand(window.values.shape), merged.mean, merged.M2)
    count, mean, m2 = (torch.where(finite, n, old) for n, old in zip(new, window[:3], strict=True))
    whole = Moments(count, mean, m2)
    batches = window.batches + 1
    done = batches >= source.window.window
    after = _averaged(average, history, whole, axes, caller)

    def at_end(new: Tensor | None, old: Tensor | None) -> Tensor | None:
        return None if new is None or old is None else torch.where(done, new, old.to(new.dtype))

    rest = (torch.where(done, 0, part) for part in (count, mean, m2, batches))
    return History(
        at_end(after.mean, history.mean),  # type: ignore[arg-type]
        at_end(after.variance, history.variance),  # type: ignore[arg-type]
        at_end(after.updates, history.updates),
        _plus(history.skipped, ~finite),
        at_end(after.values, history.values),
        Window(*rest),
    )


def _is_concrete(flag: Tensor) -> bool:
    """Whether asking for a value costs nothing."""
    return flag.device.type == "cpu" and not torch.compiler.is_compiling() and kernels.must_compose(flag) is None


def _plus(counter: Tensor | None, more: Tensor | int) -> Tensor | None:
    return None if counter is None else counter + more


def refuse(average: Running | Cumulative, caller: object) -> None:
    """Say that a batch is not taken in.

    Raises:
        FloatingPointError: where the average asks for it.
    """
    message = f"{caller}: a batch holds values that are not finite; the running statistics do not take it in"
    if average.nonfinite == "raise":
        raise FloatingPointError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)

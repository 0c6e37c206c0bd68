"""normalize(): a recipe meets a tensor. Check → operator → history, which is a new value."""

from __future__ import annotations

from math import prod
from typing import overload

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.kernels import aten
from evenorm.kernels import mask as masks
from evenorm.moments import Moments
from evenorm.operator import Settings, Step, fused, staged, summed
from evenorm.pattern import Pattern, PatternError, naming
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, History, PerDomain, Statistics, Tag, absorbed
from evenorm.statistics.group import Group
from evenorm.statistics.lockstep import current

__all__ = ["compute", "normalize", "recomputing", "refuse_residual", "remember", "run", "run_of_sum", "verify"]


@overload
def normalize(
    x: Tensor,
    pattern: str | Pattern,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    affine: str | Affine = "",
    centered: bool = True,
    eps: float | None = 1e-5,
    statistics: Statistics | None = None,
    history: History | None = None,
    state: None = None,
    history_axes: str = "",
    training: bool = True,
    activation: str | Epilogue | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    kernel: str | None = None,
    **sizes: int,
) -> Tensor: ...


@overload
def normalize(
    x: Tensor,
    pattern: str | Pattern,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    affine: str | Affine = "",
    centered: bool = True,
    eps: float | None = 1e-5,
    statistics: Statistics | None = None,
    history: None = None,
    state: History,
    history_axes: str = "",
    training: bool = True,
    activation: str | Epilogue | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    kernel: str | None = None,
    **sizes: int,
) -> tuple[Tensor, History]: ...


def normalize(
    x: Tensor,
    pattern: str | Pattern,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    affine: str | Affine = "",
    centered: bool = True,
    eps: float | None = 1e-5,
    statistics: Statistics | None = None,
    history: History | None = None,
    state: History | None = None,
    history_axes: str = "",
    training: bool = True,
    activation: str | Epilogue | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    kernel: str | None = None,
    **sizes: int,
) -> Tensor | tuple[Tensor, History]:
    r"""Normalize over the bracketed axes of a pattern.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta

    Args:
        x: a floating-point tensor.
        pattern: for example ``"n (g [c]) [...]"``; brackets mark the axes that share statistics.
        weight: γ, on the axes that ``affine`` names.
        bias: β, likewise.
        affine: the axes of weight and bias, ``"g c"``; or an ``Affine``.
        centered: whether the mean is subtracted.
        eps: added to the variance; ``None`` is the machine epsilon (float32's for half precision).
        statistics: where mean and variance come from; this batch unless given.
        history: running mean, running variance, number of updates; updated in place in training.
        state: the same as a value: nothing is written, and the call returns y and the state after it, through which
            no gradient flows.
        history_axes: the axes of the history.
        training: whether this is a training step.
        activation: what follows, by name, or an ``Epilogue``.
        residual: a tensor of the input's shape, added before the activation.
        mask: boolean, True = valid; of the input's shape, or without the axes of the affine. The rest influences
            nothing, may hold NaN, and comes out as zeros.
        kernel: the kernel to use, by name; chosen unless given.
        sizes: sizes of named axes, ``g=8``.

    Returns:
        A tensor of the input's shape, dtype and memory format; with ``state`` y and the state after this call.

    Raises:
        PatternError: the pattern cannot be read or does not fit the shape.
        TypeError: the tensor holds integers.
        ValueError: parameters of the wrong size or on another device.

    >>> x = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
    >>> normalize(x, "n [d]", eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    >>> from evenorm import History, Running
    >>> y, state = normalize(
    ...     x, "[n] c", eps=0.0, statistics=Running(0.5), history_axes="c", state=History.fresh(2), training=True
    ... )
    >>> state.mean, state.updates
    (tensor([1.5000, 3.0000]), tensor(1))
    """
    if not isinstance(pattern, (str, Pattern)):
        raise TypeError(f"normalize: expected a pattern such as 'n c [...]', got {pattern!r}")
    with naming("normalize"):
        parsed = (Settings(pattern).parsed()[0] if isinstance(pattern, str) else pattern).with_sizes(**sizes)
        recipe = Recipe(
            parsed,
            centered,
            statistics or Batch(),
            tuple(history_axes.split()),
            affine if isinstance(affine, Affine) else Affine(affine),
            eps,
            Epilogue.of(activation),
            kernel,
        )
        if isinstance(recipe.statistics, PerDomain):
            raise ValueError("a call has one history: give the statistics of one domain in place of PerDomain(…)")
        if residual is not None and recipe.epilogue.residual == "before":
            raise ValueError("only a layer adds a residual before, and gives the sum too; normalize x + residual")
        if history is not None and state is not None:
            raise ValueError("give the history, which is written to, or the state, which is not, and not both")
        if mask is not None:
            mask = masks.lay(mask, x, parsed.bind(x.shape), recipe.affine.axes)
    given = history if state is None else state
    y, after = run(recipe, x, weight, bias, given, training, "normalize", residual=residual, mask=mask)
    if state is not None:
        return y, state if after is None else after.like(state)
    if history is not None and after is not None:
        history.become(after)
    return y


def run(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    training: bool,
    caller: object,
    *,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tag: Tag | None = None,
    least: int = 1,
) -> tuple[Tensor, History | None]:
    """y, and the history after this call where it moves.

    Args:
        tag: where in the program this call is, for ranks that synchronize.
        least: values that a statistic needs, all ranks together.
    """
    given = observing = None
    if history is not None and recipe.statistics.remembers(training):
        given = history
    elif training:
        observing = history
    y, moments = compute(
        *(recipe, x, weight, bias, caller),
        residual=residual,
        mask=mask,
        given=given,
        observing=observing,
        training=training,
        tag=tag,
        least=least,
    )
    if observing is None or moments is None or recomputing():
        return y, None
    return y, remember(recipe, observing, moments, caller)


def run_of_sum(
    recipe: Recipe, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, caller: object
) -> tuple[Tensor, Tensor]:
    """y of x + residual, whose statistics are those of this batch alone, and the sum: in one sweep."""
    if kernels.exporting():
        total = x + residual
        return run(recipe, total, weight, bias, None, True, caller)[0], total
    _check(recipe, recipe.pattern.text, recipe.axes, x, weight, bias, residual, None, caller)
    return summed(x, residual, weight, bias, Settings.of(recipe, recipe.pattern.text, recipe.axes, x.dtype))


def verify(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    training: bool,
    caller: object,
) -> None:
    """Refuse a call that cannot be normalized; nothing is computed."""
    pattern, axes = recipe.pattern.text, recipe.axes
    if history is not None and recipe.statistics.remembers(training):
        pattern, axes = recipe.remembered, recipe.remembered_axes
    _check(recipe, pattern, axes, x, weight, bias, None, history, caller)


def recomputing() -> bool:
    """Whether this call is a recomputation under activation checkpointing: it runs inside a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def compute(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    caller: object,
    *,
    residual: Tensor | None,
    mask: Tensor | None = None,
    given: History | None,
    observing: History | None,
    training: bool,
    tag: Tag | None = None,
    least: int = 1,
) -> tuple[Tensor, Moments | None]:
    """y, and the batch's moments for a history that is observing; one that is given stands in their place."""
    pattern, axes = recipe.pattern.text, recipe.axes
    if given is not None:
        pattern, axes = recipe.remembered, recipe.remembered_axes
    _check(recipe, pattern, axes, x, weight, bias, residual, given or observing, caller)
    if observing is not None and observing.mean.requires_grad:
        raise ValueError(f"{caller}: no gradient flows into running statistics in training; give them detached")
    epilogue, source = recipe.epilogue, recipe.source
    settings = Settings.of(recipe, pattern, axes, x.dtype)
    if given is None and training and not source.is_alone:
        step = Step.of(recipe, source, x, observing, tag or Tag(), caller, again=recomputing())
        y, whole = staged(x, weight, bias, residual, mask, step, settings)
        _check_total(whole, step.group, least, caller)
        return y, whole
    mean, variance = (None, None) if given is None else (given.mean, given.variance)
    if kernels.exporting() and observing is None and mask is None:
        exported = aten.normalize(x, weight, bias, mean, variance, settings.parsed(), settings.centered, settings.eps)
        if exported is not None:
            return epilogue.apply(exported if residual is None else exported + residual), None
    y, mean, m2 = fused(x, weight, bias, mean, variance, residual, mask, settings)
    if observing is None:
        return y, None
    if mask is None:
        return y, Moments(x.numel() // max(prod(mean.shape), 1), mean, m2)
    return y, Moments(masks.counts(mask, recipe.pattern.bind(x.shape)), mean, m2)


def refuse_residual(x: Tensor, residual: Tensor, caller: object) -> None:
    """Refuse what is no tensor of the input's shape, on its device."""
    if not isinstance(residual, Tensor):
        raise TypeError(f"{caller}: expected a tensor for the residual, got {type(residual).__name__}")
    if residual.device != x.device:
        raise ValueError(
            f"{caller}: the input is on {x.device}, the residual on {residual.device}; move one with .to(…)"
        )
    if torch.compiler.is_compiling() or kernels.exporting():
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"{caller}: expected a residual of the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )


def _check_total(whole: Moments, group: Group | None, least: int, caller: object) -> None:
    """Refuse a variance of one value in all ranks together; every rank does."""
    if group is None or least < 2 or torch.compiler.is_compiling() or not isinstance(whole.count, Tensor):
        return
    if whole.count.device.type == "cpu" and whole.count.numel() and whole.count.max() < least:
        raise ValueError(
            f"{caller}: expected at least {least} values per statistic, got {int(whole.count.max())} in all "
            f"{group.size} ranks together"
        )


def remember(recipe: Recipe, history: History, moments: Moments, caller: object) -> History | None:
    """The history after a batch with these moments; ``None`` where it stays. An empty batch teaches nothing."""
    if not isinstance(moments.count, Tensor) and moments.count == 0:
        return None
    lane = current() if recipe.source.window is not None else None
    if lane is not None:
        # The window came at once: one of its micro-batches writes it down.
        if not lane.leads:
            return None
        history = history._replace(window=())
    elif recipe.source.counts_batches and not history.window:
        raise ValueError(
            f"{caller}: the history has no window to count micro-batches in; add one, "
            f"history._replace(window=Window.empty({tuple(moments.mean.shape)}))"
        )
    kept = recipe.pattern.kept_names(moments.mean.dim())
    averaged = tuple(i for i, name in enumerate(kept) if name not in recipe.history)
    with torch.no_grad():
        return absorbed(recipe.source, history, moments, averaged, caller)


def _check(
    recipe: Recipe,
    pattern: str,
    axes: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    history: History | None,
    caller: object,
) -> None:
    """Refuse what cannot be normalized, before anything is written."""
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{caller}: expected a tensor for the {name}, got {type(tensor).__name__}")
    if x.is_nested:
        raise TypeError(
            f"{caller}: expected a dense tensor, got a nested one; pad it with torch.nested.to_padded_tensor(x, 0.0)"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{caller}: expected a dense tensor, got layout {x.layout}; convert it with x.to_dense()")
    if not x.is_floating_point():
        raise TypeError(f"{caller}: expected a floating-point tensor, got {x.dtype}; convert it with x.float()")
    past = None if history is None else history.mean
    others = (("weight", weight), ("bias", bias), ("history", past))
    for name, tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{caller}: the input is on {x.device}, the {name} on {tensor.device}; move one with .to(…)"
            )
    if residual is not None:
        refuse_residual(x, residual, caller)
    if torch.compiler.is_compiling() or kernels.exporting():
        # Shapes are symbolic; the operator's kernel checks them when it is called.
        return
    kept = " ".join(recipe.history)
    try:
        parameters, averages = _values(pattern, axes, x.shape), _values(pattern, kept, x.shape)
    except PatternError as fault:
        raise fault.named(caller) from None
    wanted = ((weight, "weight", parameters, axes), (bias, "bias", parameters, axes), (past, "history", averages, kept))
    for tensor, name, count, names in wanted:
        if tensor is not None and tensor.numel() != count:
            argument = "history_axes" if name == "history" else "affine"
            where = f"on {names!r}" if names else f"for no axis; name the axes it lies on, for example {argument}='c'"
            raise ValueError(
                f"{caller}: expected a {name} of {count} values {where}, got shape {tuple(tensor.shape)} for an input "
                f"of shape {tuple(x.shape)}"
            )


@cached
def _values(pattern: str, axes: str, shape: tuple[int, ...]) -> int:
    """Values of a tensor on these axes; the pattern must fit the shape."""
    binding = Pattern.parse(pattern).bind(shape)
    return prod(binding.sizes(axes.split())) if axes else 0

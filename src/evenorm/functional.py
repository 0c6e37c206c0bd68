"""normalize(): a recipe meets a tensor. Check → operator → history."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from evenorm import kernels, operator
from evenorm.affine import Affine
from evenorm.kernels import aten
from evenorm.moments import Moments
from evenorm.pattern import Pattern, PatternError
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, History, Statistics

__all__ = ["compute", "normalize", "remember", "run"]


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
    history_axes: str = "",
    training: bool = True,
    kernel: str | None = None,
    **sizes: int,
) -> Tensor:
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
        history_axes: the axes of the history.
        training: whether this is a training step.
        kernel: the kernel to use, by name; chosen unless given.
        sizes: sizes of named axes, ``g=8``.

    Returns:
        A tensor of the input's shape, dtype and memory format.

    Raises:
        PatternError: the pattern cannot be read or does not fit the shape.
        TypeError: the tensor holds integers.
        ValueError: parameters of the wrong size or on another device.

    >>> x = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
    >>> normalize(x, "n [d]", eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    parsed = (operator.parsed(pattern)[0] if isinstance(pattern, str) else pattern).with_sizes(**sizes)
    recipe = Recipe(
        parsed,
        centered,
        statistics or Batch(),
        tuple(history_axes.split()),
        affine if isinstance(affine, Affine) else Affine(affine),
        eps,
        kernel,
    )
    return run(recipe, x, weight, bias, history, training, "normalize")


def run(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    training: bool,
    caller: object,
) -> Tensor:
    """Normalize by a recipe; in training the history takes this batch in, last of all."""
    remembers = history is not None and recipe.statistics.remembers(training)
    observes = training and history is not None and not remembers
    y, moments = compute(recipe, x, weight, bias, history if remembers else None, caller, observed=observes)
    if observes and history is not None and moments is not None:
        remember(recipe, history, moments)
    return y


def compute(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    caller: object,
    *,
    observed: bool = True,
) -> tuple[Tensor, Moments | None]:
    """y, and the batch's moments where they are observed; not where a history was given in their place."""
    pattern, axes = recipe.pattern.text, recipe.axes
    if history is not None:
        pattern, axes = recipe.remembered, recipe.remembered_axes
    _check(pattern, axes, x, weight, bias, history, caller)
    mean, variance = (None, None) if history is None else (history.mean, history.variance)
    eps, affine = recipe.eps_for(x.dtype), recipe.affine
    if kernels.exporting() and not observed:
        laid, scaling = operator.parsed(pattern, axes, affine.offset, affine.cast)
        exported = aten.normalize(x, weight, bias, mean, variance, laid, scaling, recipe.centered, eps)
        if exported is not None:
            return exported, None
    settings = (pattern, axes, recipe.centered, eps, affine.offset, affine.cast, recipe.kernel)
    y, mean, m2 = operator.call(x, weight, bias, mean, variance, *settings)
    if history is not None:
        return y, None
    return y, Moments(x.numel() // max(prod(mean.shape), 1), mean, m2)


def remember(recipe: Recipe, history: History, moments: Moments) -> None:
    """Take a batch's moments into the history. An empty batch teaches nothing."""
    if not isinstance(moments.count, Tensor) and moments.count == 0:
        return
    kept = recipe.pattern.kept_names(moments.mean.dim())
    with torch.no_grad():
        mean, variance = moments.averaged(tuple(i for i, name in enumerate(kept) if name not in recipe.history))
        if history.updates is not None:
            history.updates.add_(1)
        recipe.statistics.update(history, mean.reshape(history.mean.shape), variance.reshape(history.mean.shape))


def _check(
    pattern: str,
    axes: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    caller: object,
) -> None:
    """Refuse what cannot be normalized, before anything is written."""
    if not x.is_floating_point():
        raise TypeError(f"{caller}: expected a floating-point tensor, got {x.dtype}; convert it with x.float()")
    others = (("weight", weight), ("bias", bias), ("history", None if history is None else history.mean))
    for name, tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{caller}: the input is on {x.device}, the {name} on {tensor.device}; move one with .to(…)"
            )
    if torch.compiler.is_compiling():
        # Shapes are symbolic; the operator's own shape function checks them.
        return
    try:
        count = _parameters(pattern, axes, x.shape)
    except PatternError as fault:
        raise fault.named(caller) from None
    for name, tensor in others[:2]:
        if tensor is not None and tensor.numel() != count:
            where = f"on {axes!r}" if axes else "on no axis; name its axes, for example affine='c'"
            raise ValueError(
                f"{caller}: expected a {name} of {count} values {where}, got shape {tuple(tensor.shape)} for an input "
                f"of shape {tuple(x.shape)}"
            )


@lru_cache(maxsize=4096)
def _parameters(pattern: str, axes: str, shape: tuple[int, ...]) -> int:
    """Values of a weight on these axes; the pattern must fit the shape."""
    binding = Pattern.parse(pattern).bind(shape)
    return prod(binding.sizes(axes.split())) if axes else 0

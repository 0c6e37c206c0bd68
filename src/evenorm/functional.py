"""normalize(): a recipe meets a tensor. Check → operator → history."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.kernels import aten
from evenorm.moments import Moments
from evenorm.operator import Settings, call
from evenorm.pattern import Pattern, PatternError, naming
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
    activation: str | Epilogue | None = None,
    residual: Tensor | None = None,
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
        activation: what follows, by name, or an ``Epilogue``.
        residual: a tensor of the input's shape, added before the activation.
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
    return run(recipe, x, weight, bias, history, training, "normalize", residual)


def run(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    history: History | None,
    training: bool,
    caller: object,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize by a recipe; in training the history takes this batch in, last of all."""
    given = observing = None
    if history is not None and recipe.statistics.remembers(training):
        given = history
    elif training:
        observing = history
    y, moments = compute(recipe, x, weight, bias, caller, residual=residual, given=given, observing=observing)
    if observing is not None and moments is not None:
        remember(recipe, observing, moments)
    return y


def compute(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    caller: object,
    *,
    residual: Tensor | None,
    given: History | None,
    observing: History | None,
) -> tuple[Tensor, Moments | None]:
    """y, and the batch's moments for a history that is observing; one that is given stands in their place."""
    pattern, axes = recipe.pattern.text, recipe.axes
    if given is not None:
        pattern, axes = recipe.remembered, recipe.remembered_axes
    _check(recipe, pattern, axes, x, weight, bias, residual, given or observing, caller)
    mean, variance = (None, None) if given is None else (given.mean, given.variance)
    affine, epilogue = recipe.affine, recipe.epilogue
    settings = Settings(
        *(pattern, axes, recipe.centered, recipe.eps_for(x.dtype), affine.offset, affine.cast),
        *(epilogue.activation, epilogue.slope, recipe.kernel),
    )
    if kernels.exporting() and observing is None:
        exported = aten.normalize(x, weight, bias, mean, variance, settings.parsed(), settings.centered, settings.eps)
        if exported is not None:
            return epilogue.apply(exported if residual is None else exported + residual), None
    y, mean, m2 = call(x, weight, bias, mean, variance, residual, settings)
    if observing is None:
        return y, None
    return y, Moments(x.numel() // max(prod(mean.shape), 1), mean, m2)


def remember(recipe: Recipe, history: History, moments: Moments) -> None:
    """Take a batch's moments into the history. An empty batch teaches nothing."""
    if not isinstance(moments.count, Tensor) and moments.count == 0:
        return
    kept = recipe.pattern.kept_names(moments.mean.dim())
    with torch.no_grad():
        mean, variance = moments.averaged(tuple(i for i, name in enumerate(kept) if name not in recipe.history))
        recipe.statistics.update(history, mean.reshape(history.mean.shape), variance.reshape(history.mean.shape))


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
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias), ("residual", residual)):
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
    others = (("weight", weight), ("bias", bias), ("residual", residual), ("history", past))
    for name, tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{caller}: the input is on {x.device}, the {name} on {tensor.device}; move one with .to(…)"
            )
    if torch.compiler.is_compiling() or kernels.exporting():
        # Shapes are symbolic; the operator's own shape function checks them.
        return
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"{caller}: expected a residual of the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    kept = " ".join(recipe.history)
    try:
        parameters, averages = _values(pattern, axes, x.shape), _values(pattern, kept, x.shape)
    except PatternError as fault:
        raise fault.named(caller) from None
    wanted = ((weight, "weight", parameters, axes), (bias, "bias", parameters, axes), (past, "history", averages, kept))
    for tensor, name, count, names in wanted:
        if tensor is not None and tensor.numel() != count:
            where = f"on {names!r}" if names else "for no axis; name the axes it lies on, for example affine='c'"
            raise ValueError(
                f"{caller}: expected a {name} of {count} values {where}, got shape {tuple(tensor.shape)} for an input "
                f"of shape {tuple(x.shape)}"
            )


@cached
def _values(pattern: str, axes: str, shape: tuple[int, ...]) -> int:
    """Values of a tensor on these axes; the pattern must fit the shape."""
    binding = Pattern.parse(pattern).bind(shape)
    return prod(binding.sizes(axes.split())) if axes else 0

"""normalize(): the one autograd function. Plan → moments → statistics → apply, and back."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.affine import Affine
from evenorm.kernels import aten, eager
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
    affine: str | Affine = (),
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
        eps: added to the variance; ``None`` is the machine epsilon of the input's dtype.
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
    parsed = (_parsed(pattern)[0] if isinstance(pattern, str) else pattern).with_sizes(**sizes)
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
    pattern = recipe.pattern.text if history is None else recipe.remembered
    _check(recipe, pattern, x, weight, bias, history, caller)
    mean, variance = (None, None) if history is None else (history.mean, history.variance)
    arguments = (
        *(x, weight, bias, mean, variance, pattern, recipe.axes, recipe.centered, recipe.eps_for(x.dtype)),
        *(recipe.affine.offset, recipe.affine.cast, recipe.kernel),
    )
    if kernels.exporting() and not observed:
        exported = aten.normalize(*arguments[:5], _parsed(pattern)[0], recipe.affine, *arguments[7:9])
        if exported is not None:
            return exported, None
    y, mean, m2 = _dispatch(*arguments)
    if history is not None:
        return y, None
    return y, Moments(x.numel() // max(prod(mean.shape), 1), mean, m2)


def remember(recipe: Recipe, history: History, moments: Moments) -> None:
    """Take a batch's moments into the history. An empty batch teaches nothing."""
    if not isinstance(moments.count, Tensor) and moments.count == 0:
        return
    kept = [f.name for f in recipe.pattern.factors if not f.reduced]
    with torch.no_grad():
        mean, variance = moments.averaged(tuple(i for i, name in enumerate(kept) if name not in recipe.history))
        if history.updates is not None:
            history.updates.add_(1)
        recipe.statistics.update(history, mean.reshape(history.mean.shape), variance.reshape(history.mean.shape))


def _dispatch(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same call as an operator of a compiled graph, as torch's operations, recorded, or bare."""
    tensors = arguments[:5]
    if torch.compiler.is_compiling() and not kernels.exporting() and not kernels.transforming():
        return torch.ops.evenorm.normalize(*arguments)
    if torch.compiler.is_compiling() or kernels.must_compose(*tensors) is not None:
        return _composed(*arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Normalize.apply(*arguments)
    return _forward(*arguments)


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch operations, which autograd differentiates itself: y, mean, M2."""
    parsed, affine = _parsed(pattern, axes, offset, cast)
    if mean is not None and variance is not None:
        given = eager.statistics(x, mean, variance, eps)
        return eager.apply(x, parsed, *given, weight, bias, affine), x.new_empty(0), x.new_empty(0)
    return eager.forward(x, parsed, centered, eps, weight, bias, affine)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen kernel: y, mean, M2; where statistics are given the last two are empty."""
    parsed, affine = _parsed(pattern, axes, offset, cast)
    chosen = kernels.choose(x, parsed, affine, kernel)
    if mean is not None and variance is not None:
        y = chosen.apply(x, parsed, *eager.statistics(x, mean, variance, eps), weight, bias, affine)
        return y, x.new_empty(0), x.new_empty(0)
    return chosen.forward(x, parsed, centered, eps, weight, bias, affine)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, mean, variance, *settings = inputs
    _, batch_mean, m2 = output
    ctx.mark_non_differentiable(batch_mean, m2)
    ctx.given = mean is not None
    ctx.settings = tuple(settings)
    # Of the bias the backward needs its shape alone; a second derivative needs all.
    ctx.save_for_backward(x, weight, bias, *((mean, variance) if ctx.given else (batch_mean, m2)))


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, spread = ctx.saved_tensors
    needs = ctx.needs_input_grad
    nothing = (None,) * 9
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_backward(ctx, dy) + nothing
    arguments = (dy, x, mean, spread, weight, *ctx.settings, ctx.given, needs[0])
    composed = kernels.must_compose(dy, x, weight) is not None
    gradients = torch.ops.evenorm.normalize_backward if composed else _gradients
    dx, d_weight, d_bias = gradients(*arguments)
    return (
        dx if needs[0] else None,
        d_weight.reshape(weight.shape).to(weight.dtype) if weight is not None and needs[1] else None,
        d_bias.reshape(bias.shape).to(bias.dtype) if bias is not None and needs[2] else None,
    ) + nothing


def _differentiable_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as a graph of torch's own operations, for derivatives of any order."""
    x, weight, bias, mean, variance = ctx.saved_tensors
    given = (mean, variance) if ctx.given else (None, None)
    y, *_ = _composed(x, weight, bias, *given, *ctx.settings)
    wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:3])


def _gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
    given: bool,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, Σ dy·x̂ and Σ dy by the chosen kernel; ``spread`` is the variance where statistics are given, else M2."""
    parsed, affine = _parsed(pattern, axes, offset, cast)
    chosen = kernels.choose(x, parsed, affine, kernel)
    dx, d_weight, d_bias = kernels.backward(
        chosen, dy, x, parsed, centered, eps, mean, spread, weight, affine, given=given, needs_input=needs_input
    )
    return (x.new_empty(0) if dx is None else dx), d_weight, d_bias


class _Normalize(torch.autograd.Function):
    """The recorded call of eager mode; a compiled graph holds the operator below, made of the same three parts."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


_SETTINGS = "str pattern, str axes, bool centered, float eps, float offset, str cast, str? kernel"
_library = torch.library.Library("evenorm", "DEF")
_library.define(
    f"normalize(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, {_SETTINGS})"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"normalize_backward(Tensor dy, Tensor x, Tensor mean, Tensor spread, Tensor? weight, {_SETTINGS},"
    " bool given, bool needs_input) -> (Tensor, Tensor, Tensor)"
)
_library.impl("normalize", _forward, "CompositeExplicitAutograd")
_library.impl("normalize_backward", _gradients, "CompositeExplicitAutograd")


@torch.library.register_fake("evenorm::normalize", lib=_library)
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (0,) if mean is not None else _parsed(pattern)[0].bind(x.shape).statistics_shape
    return torch.empty_like(x), *(x.new_empty(shape, dtype=torch.float64) for _ in range(2))


@torch.library.register_fake("evenorm::normalize_backward", lib=_library)
def _(
    dy: Tensor, x: Tensor, mean: Tensor, spread: Tensor, weight: Tensor | None, pattern: str, axes: str, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _parsed(pattern)[0].bind(x.shape).sizes(axes.split())
    dx = torch.empty_like(x) if rest[-1] else x.new_empty(0)
    return dx, *(x.new_empty(shape, dtype=torch.float64) for _ in range(2))


torch.library.register_autograd(
    "evenorm::normalize", _backward, setup_context=_setup_context, lib=_library
)


def _parse(pattern: str, axes: str, offset: float, cast: Any) -> tuple[Pattern, Affine]:
    return Pattern.parse(pattern), Affine(axes, offset, cast)


_cached_parse = lru_cache(maxsize=1024)(_parse)


def _parsed(pattern: str, axes: str = "", offset: float = 0.0, cast: Any = "after") -> tuple[Pattern, Affine]:
    """The pattern and the affine that an operator's arguments spell."""
    # A trace sees through caches and warns of each.
    return (_parse if torch.compiler.is_compiling() else _cached_parse)(pattern, axes, offset, cast)


def _check(
    recipe: Recipe,
    pattern: str,
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
            raise ValueError(f"{caller}: the input is on {x.device}, the {name} on {tensor.device}; move one with .to(…)")
    if torch.compiler.is_compiling():
        # Shapes are symbolic; the operator's own shape function checks them.
        return
    try:
        count = _parameters(pattern, recipe.axes, x.shape)
    except PatternError as fault:
        raise fault.named(caller) from None
    for name, tensor in others[:2]:
        if tensor is not None and tensor.numel() != count:
            where = f"on {recipe.axes!r}" if recipe.axes else "on no axis; name its axes, for example affine='c'"
            raise ValueError(
                f"{caller}: expected a {name} of {count} values {where}, got shape {tuple(tensor.shape)} for an input "
                f"of shape {tuple(x.shape)}"
            )


@lru_cache(maxsize=4096)
def _parameters(pattern: str, axes: str, shape: tuple[int, ...]) -> int:
    """Values of a weight on these axes; the pattern must fit the shape."""
    binding = Pattern.parse(pattern).bind(shape)
    return prod(binding.sizes(axes.split())) if axes else 0

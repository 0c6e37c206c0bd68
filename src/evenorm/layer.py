"""What every layer shares: one forward, whose recipe is read from the layer's attributes at each call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from evenorm.affine import Affine, Cast
from evenorm.functional import run
from evenorm.pattern import Binding, Pattern
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, Cumulative, History, Running, Statistics

__all__ = ["BatchLayer", "Layer", "recipe_of"]


class Layer(nn.Module):
    """A normalization layer: a recipe, its parameters, perhaps a history.

    ``layer(x, scale=…, shift=…)`` takes weight and bias at the call, per sample: adaptive layer and instance
    norm, conditional batch norm. The layer must then have no weight of its own.
    """

    kernel: str | None = None
    """The kernel to use, by name; ``None`` chooses at each call."""

    least_values: ClassVar[int] = 1
    """Values that a statistic of a batch needs at the least."""

    forms: ClassVar[tuple[str, ...]] = ()
    """Input shapes that the layer takes; any that fits the pattern where there are none."""

    weight: Tensor | None
    bias: Tensor | None

    @property
    def recipe(self) -> Recipe:
        """The layer as one sentence, read from its attributes."""
        raise NotImplementedError

    @property
    def history(self) -> History | None:
        """What the layer remembers, if anything."""
        return None

    def validate(self) -> None:
        """Refuse bad settings when the layer is made: every constructor's last line."""
        str(self.recipe)

    def forward(self, input: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalize."""
        if isinstance(input, Proxy):
            # torch.fx keeps the layer whole, as it keeps torch's own.
            options = {k: v for k, v in (("scale", scale), ("shift", shift)) if v is not None}
            path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            return input.tracer.create_proxy("call_module", path, (input,), options)  # type: ignore[return-value]
        recipe, weight, bias = self.recipe, self.weight, self.bias
        self.check(input, recipe)
        if scale is not None or shift is not None:
            recipe, weight, bias = self._given(recipe, input, scale, shift)
        return self.normalize(input, recipe, weight, bias)

    def normalize(self, input: Tensor, recipe: Recipe, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """One call of the engine."""
        return run(recipe, input, weight, bias, self.history, self.training, self)

    def check(self, input: Tensor, recipe: Recipe) -> None:
        """Refuse a shape that the layer does not take, before anything is written."""
        ranks = [form.count(",") + 1 for form in self.forms]
        if ranks and input.dim() not in ranks:
            raise ValueError(
                f"{self}: expected {' or '.join(self.forms)}, got {input.dim()} axes: shape {tuple(input.shape)}"
            )
        channels = getattr(self, "num_features", None)
        if channels is not None and input.shape[1] != channels:
            raise ValueError(
                f"{self}: expected {channels} channels on axis 1, got {input.shape[1]} in shape {tuple(input.shape)}"
            )
        if self.least_values > 1 and not (self.history is not None and recipe.statistics.remembers(self.training)):
            self._check_values(input, recipe.pattern)

    def _check_values(self, input: Tensor, pattern: Pattern) -> None:
        values = pattern.bind(input.shape).count
        if input.numel() and values < self.least_values:
            raise ValueError(
                f"{self}: expected at least {self.least_values} values per statistic, got {values} from shape "
                f"{tuple(input.shape)}: the variance of one value is 0. Use a larger batch, or a normalizer "
                f"that does not need one (LayerNorm)"
            )

    def _given(
        self, recipe: Recipe, input: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> tuple[Recipe, Tensor | None, Tensor | None]:
        """The recipe with the affine that the call brings."""
        if self.weight is not None or self.bias is not None:
            raise ValueError(
                f"{self}: got scale or shift, but the layer has a weight or bias of its own; "
                f"build it without (affine=False, elementwise_affine=False)"
            )
        binding = recipe.pattern.bind(input.shape)
        axes = [self._given_axes(recipe, binding, input, t) for t in (scale, shift) if t is not None]
        if len({a for a in axes}) > 1:
            raise ValueError(f"{self}: scale and shift lie on different axes; give both in one shape")
        return replace(recipe, affine=replace_axes(recipe.affine, axes[0])), scale, shift

    def _given_axes(self, recipe: Recipe, binding: Binding, input: Tensor, given: Tensor) -> tuple[str, ...]:
        own = recipe.affine.axes
        first = tuple(n for n, axis in zip(binding.names, binding.axes, strict=True) if axis == 0)
        sizes, batch = binding.sizes(own), input.shape[0]
        if given.shape in (sizes, (prod(sizes),)):
            return own
        if given.shape in ((batch, *sizes), (batch, prod(sizes))):
            return first + own
        wide = given.dim() == input.dim()
        if wide and all(g in (1, i) for g, i in zip(given.shape, input.shape, strict=True)):
            return tuple(n for n, a in zip(binding.names, binding.axes, strict=True) if given.shape[a] != 1)
        raise ValueError(
            f"{self}: scale and shift must have shape {sizes}, {(batch, *sizes)} (per sample), or one that broadcasts "
            f"against {tuple(input.shape)}; got {tuple(given.shape)}"
        )


def replace_axes(affine: Affine, axes: tuple[str, ...]) -> Affine:
    """The affine on other axes."""
    return Affine(axes, affine.offset, affine.cast)


class BatchLayer(Layer):
    """A layer with torch's running statistics: ``momentum``, ``track_running_stats`` and three buffers."""

    least_values = 2
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        decay: float | None = None,
    ) -> None:
        if decay is not None:
            momentum = Running(decay=decay).momentum
        elif momentum is not None and 0.9 <= momentum < 1:
            warnings.warn(
                f"{type(self).__name__}: momentum={momentum} keeps {1 - momentum:.3g} of the past at each step (torch's "
                f"convention). If {momentum} of the past should stay, write decay={momentum}",
                stacklevel=2,
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.validate()

    @property
    def statistics(self) -> Statistics:
        """Where mean and variance come from, read from the attributes."""
        if self.running_mean is None or (self.training and not self.track_running_stats):
            return Batch()
        return Cumulative() if self.momentum is None else Running(self.momentum)

    @property
    def history(self) -> History | None:
        """The running statistics."""
        if self.running_mean is None or self.running_var is None:
            return None
        return History(self.running_mean, self.running_var, self.num_batches_tracked)


@lru_cache(maxsize=1024)
def _recipe(
    pattern: str,
    centered: bool,
    statistics: Statistics,
    history: tuple[str, ...],
    axes: str,
    offset: float,
    cast: Cast,
    eps: float,
    kernel: str | None,
) -> Recipe:
    return Recipe(Pattern.parse(pattern), centered, statistics, history, Affine(axes, offset, cast), eps, kernel)


def recipe_of(
    layer: Layer,
    pattern: str,
    axes: str,
    *,
    offset: float = 0.0,
    cast: Cast = "after",
    centered: bool = True,
    statistics: Statistics | None = None,
    history: tuple[str, ...] = (),
) -> Recipe:
    """The recipe of a layer, remembered: attributes rarely change between two calls."""
    # A trace sees through caches and warns of each.
    build = _recipe.__wrapped__ if torch.compiler.is_compiling() else _recipe
    try:
        return build(pattern, centered, statistics or Batch(), history, axes, offset, cast, layer.eps, layer.kernel)
    except ValueError as fault:
        raise ValueError(f"{layer}: {fault}") from None

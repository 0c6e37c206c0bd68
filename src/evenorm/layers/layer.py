"""What every layer shares: one forward, whose recipe is read from the layer's attributes at each call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.functional import run
from evenorm.pattern import Pattern, PatternError, naming
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, Cumulative, History, Running, Statistics

__all__ = ["BatchLayer", "Layer"]


class Layer(nn.Module):
    """A normalization layer: a recipe, its parameters, perhaps a history.

    ``layer(x, scale=…, shift=…)`` takes weight and bias at the call, per sample: adaptive layer and instance
    norm, conditional batch norm. The layer must then have no weight of its own.
    """

    kernel: str | None = None
    """The kernel to use, by name; ``None`` chooses at each call."""

    forms: ClassVar[tuple[str, ...]] = ()
    """Input shapes that the layer takes; any that fits the pattern where there are none."""

    least_values: Any = 1
    """Values that a statistic of a batch needs at the least."""

    # Read at each call; properties where they follow from other attributes.
    pattern: Any
    scaling: Any = Affine()
    centered: bool = True
    statistics: Statistics = Batch()
    history_axes: tuple[str, ...] = ()
    epilogue: Epilogue = Epilogue()

    # Torch's layers declare these; Any agrees with all of them.
    eps: Any
    weight: Any
    bias: Any

    @property
    def recipe(self) -> Recipe:
        """The layer as one sentence, read from its attributes."""
        try:
            return _recipe(
                self.pattern,
                self.centered,
                self.statistics,
                self.history_axes,
                self.scaling,
                self.eps,
                self.epilogue,
                self.kernel,
            )
        except ValueError as fault:
            raise ValueError(f"{self}: {fault}") from None

    @property
    def history(self) -> History | None:
        """What the layer remembers, if anything."""
        return None

    def validate(self) -> None:
        """Refuse bad settings when the layer is made: every constructor's last line."""
        # First what the repr in other messages needs.
        with naming(type(self).__name__):
            str(self.pattern), str(self.scaling)
        str(self.recipe)

    def forward(
        self,
        input: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Any:
        """Normalize.

        Args:
            scale, shift: weight and bias of this call.
            residual: added to the normalized values before the activation; or, with
                ``Epilogue(residual="before")``, to the input.

        Returns:
            y; with a residual added before the normalization y and the sum.
        """
        if isinstance(input, Proxy):
            # torch.fx keeps the layer whole, as it keeps torch's own.
            options = {"scale": scale, "shift": shift, "residual": residual}
            given = {name: value for name, value in options.items() if value is not None}
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)
        if residual is not None and self.epilogue.residual == "before":
            total = input + residual
            return self._call(total, scale, shift, None), total
        return self._call(input, scale, shift, residual)

    def _call(self, input: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> Tensor:
        recipe, weight, bias = self.recipe, self.weight, self.bias
        self.check(input, recipe)
        if scale is not None or shift is not None:
            recipe, weight, bias = self._given(recipe, input, scale, shift)
        return self.normalize(input, recipe, weight, bias, residual)

    def normalize(
        self,
        input: Tensor,
        recipe: Recipe,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """One call of the engine."""
        return run(recipe, input, weight, bias, self.history, self.training, self, residual)

    def extra_repr(self) -> str:
        """Torch's, and what torch's layer does not have."""
        parts = [super().extra_repr()]
        if self.scaling.offset:
            parts.append(f"weight_offset={self.scaling.offset:g}")
        if self.scaling.cast != "after":
            parts.append(f"cast={self.scaling.cast!r}")
        if self.epilogue.activation != "identity":
            parts.append(f"activation={self.epilogue}")
        return ", ".join(filter(None, parts))

    def check(self, input: Tensor, recipe: Recipe) -> None:
        """Refuse a shape that the layer does not take, before anything is written."""
        if not isinstance(input, Tensor):
            raise TypeError(f"{self}: expected a tensor, got {type(input).__name__}")
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        fault = _shape_fault(self.forms, getattr(self, "num_features", None), input.shape)
        remembers = self.history is not None and recipe.statistics.remembers(self.training)
        if fault is None and self.least_values > 1 and not remembers and 0 not in input.shape:
            try:
                values = _values(*self.smallest(input, recipe))
            except PatternError as wrong:
                raise wrong.named(self) from None
            if values < self.least_values:
                fault = (
                    f"expected at least {self.least_values} values per statistic, got {values} from shape "
                    f"{tuple(input.shape)}: the variance of one value is 0. Use a larger batch, or a normalizer that "
                    f"does not need one (LayerNorm)"
                )
        if fault is not None:
            raise ValueError(f"{self}: {fault}")

    def smallest(self, input: Tensor, recipe: Recipe) -> tuple[Pattern, tuple[int, ...]]:
        """Pattern and shape of the part of the input that has the fewest values per statistic."""
        return recipe.pattern, input.shape

    def _given(
        self, recipe: Recipe, input: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> tuple[Recipe, Tensor | None, Tensor | None]:
        """The recipe with the affine that the call brings, its weight and its bias."""
        if self.weight is not None or self.bias is not None:
            raise ValueError(
                f"{self}: got scale or shift, but the layer has a weight or bias of its own; "
                f"build it without (affine=False, elementwise_affine=False)"
            )
        # One value for all is one for each of an axis.
        scale, shift = (
            given.expand(*given.shape[:-1], input.shape[-1])
            if isinstance(given, Tensor) and given.dim() == input.dim() and given.numel() == 1
            else given
            for given in (scale, shift)
        )
        axes = {self._given_axes(recipe, input, given) for given in (scale, shift) if given is not None}
        if len(axes) > 1:
            raise ValueError(f"{self}: scale and shift lie on different axes; give both in one shape")
        affine = Affine(axes.pop(), recipe.affine.offset, recipe.affine.cast)
        return replace(recipe, affine=affine), scale, shift

    def _given_axes(self, recipe: Recipe, input: Tensor, given: Tensor) -> tuple[str, ...]:
        if not isinstance(given, Tensor):
            raise TypeError(f"{self}: expected a tensor for scale and shift, got {type(given).__name__}")
        binding = recipe.pattern.bind(input.shape)
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
            f"{self}: scale and shift must have shape {sizes}, {(batch, *sizes)} (per sample), or one that "
            f"broadcasts against {tuple(input.shape)}; got {tuple(given.shape)}"
        )


_recipe = cached(Recipe)


@cached
def _shape_fault(forms: tuple[str, ...], channels: int | None, shape: tuple[int, ...]) -> str | None:
    """What is wrong with an input's shape, if anything."""
    if forms and len(shape) not in [form.count(",") + 1 for form in forms]:
        return f"expected {' or '.join(forms)}, got {len(shape)} axes: shape {tuple(shape)}"
    if channels is not None and shape[1] != channels:
        return f"expected {channels} channels on axis 1, got {shape[1]} in shape {tuple(shape)}"
    return None


@cached
def _values(pattern: Pattern, shape: tuple[int, ...]) -> int:
    """Values per statistic."""
    return pattern.bind(shape).count


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
        activation: str | Epilogue | None = None,
    ) -> None:
        name = type(self).__name__.removeprefix("Fused")
        if decay is not None and momentum != 0.1:
            raise ValueError(f"{name}: give either momentum or decay, got momentum={momentum} and decay={decay}")
        with naming(name):
            self.epilogue = Epilogue.of(activation)
            given = None if decay is None else Running(decay=decay).momentum
            if self.epilogue.activation != "identity" and isinstance(self, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    "a class derived from torch's batch norm loses its activation in converters; "
                    "derive from evenorm.layers.batch.FusedBatchNorm2d (1d, 3d) instead"
                )
        if given is not None:
            momentum = given
        elif momentum is not None and 0.9 <= momentum < 1:
            warnings.warn(
                f"{name}: momentum={momentum} keeps {1 - momentum:.3g} of the past at each step "
                f"(torch's convention). If {momentum} of the past should stay, write decay={momentum}",
                stacklevel=2 + (type(self).__init__ is not BatchLayer.__init__),
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.validate()

    @property
    def statistics(self) -> Statistics:  # type: ignore[override]
        """Where mean and variance come from, read from the attributes."""
        if self.running_mean is None or (self.training and not self.track_running_stats):
            return Batch()
        return self.averaging

    @property
    def averaging(self) -> Statistics:
        """The running average that ``momentum`` asks for."""
        return Cumulative() if self.momentum is None else Running(self.momentum)

    @property
    def history(self) -> History | None:
        """The running statistics."""
        if self.running_mean is None or self.running_var is None:
            return None
        return History(self.running_mean, self.running_var, self.num_batches_tracked)

"""What every layer shares: one forward, whose recipe is read from the layer's attributes at each call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.functional import recomputing, refuse_residual, run, run_of_sum, verify
from evenorm.kernels import mask as masks
from evenorm.layers.given import affine_of
from evenorm.layers.packed import padded, repacked
from evenorm.operator import Straight
from evenorm.pattern import Binding, Pattern, PatternError, naming
from evenorm.recipe import Recipe
from evenorm.statistics import Batch, History, PerDomain, Statistics, Tag, numbered

__all__ = ["Layer"]

_ways: WeakKeyDictionary[Layer, dict[Any, Straight]] = WeakKeyDictionary()
"""Calls that each layer has made before, by the input's shape, strides and dtype; any new attribute forgets them."""

_MOST_WAYS = 64


class Layer(nn.Module):
    """A normalization layer: a recipe, its parameters, perhaps a history.

    ``layer(x, scale=…, shift=…)`` takes weight and bias at the call, per sample: adaptive layer and instance
    norm, conditional batch norm. The layer must then have no weight of its own.

    ``layer(x, mask=…)`` or ``layer(x, lengths=…)`` says which positions are there: see :meth:`forward`.
    """

    kernel: str | None = None
    """The kernel to use, by name; ``None`` chooses at each call."""

    forms: ClassVar[tuple[str, ...]] = ()
    """Input shapes that the layer takes; any that fits the pattern where there are none."""

    number: int = 0
    """Which of the layers that exchange moments this is: the same in all processes, and of no other layer in this."""

    before: History | None = None
    """The history before the last call, which a recomputation of that call needs where it reads the history."""

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
    def features(self) -> tuple[str, ...]:
        """The axes of the features, which a mask does not have."""
        return tuple(self.scaling.axes)

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
        self._take_number()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.number:
            # A copy is another layer.
            self._take_number()

    def _take_number(self) -> None:
        """A number of its own, where moments are exchanged with ranks or micro-batches."""
        sources = [choice.flat() for choice in self.statistics.on(Batch()).choices()]
        if not any(source.is_merged for source in sources):
            return
        groups = {getattr(s.synced.process_group, "group_name", "") for s in sources if s.synced is not None} - {""}
        name, size = type(self).__name__.removeprefix("Fused"), getattr(self, "num_features", None)
        parts = [repr(str(self.pattern)), *([] if size is None else [str(size)]), *sorted(groups)]
        self.number = numbered(f"{name}({', '.join(parts)})")

    def forward(
        self,
        input: Tensor | PackedSequence,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        domain: str | None = None,
    ) -> Any:
        """Normalize.

        Args:
            input: a tensor, or a packed sequence, which comes back packed.
            scale, shift: weight and bias of this call.
            residual: added to the normalized values before the activation; or, with
                ``Epilogue(residual="before")``, to the input.
            mask: boolean, True = valid, (N, positions), for (N, C, L) and for (N, L, D). What is not valid influences
                nothing (statistics, gradients, histories), may hold NaN, and comes out as zeros.
            lengths: (N,), its prefix form: as many positions of each sample are valid.
            domain: which history to use, where there is one :class:`PerDomain`.

        Returns:
            y; with a residual added before the normalization y and the sum, which a mask does not change.
        """
        given = scale is not None or shift is not None
        chosen = mask is not None or lengths is not None or domain is not None
        if not given and not chosen and not torch.compiler.is_compiling():
            y = self._straight(input, residual)
            if y is not None:
                return y
        if isinstance(input, Proxy):
            # torch.fx keeps the layer whole, as it keeps torch's own.
            names = ("scale", "shift", "residual", "mask", "lengths", "domain")
            values = (scale, shift, residual, mask, lengths, domain)
            options = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), options)
        if isinstance(input, PackedSequence):
            if mask is not None or lengths is not None or residual is not None:
                raise ValueError(f"{self}: a packed sequence knows its lengths; give no mask, lengths or residual")
            x, lengths = padded(input, self._features_first)
            y = self._call(x, scale, shift, None, lengths=lengths, domain=domain)
            return repacked(y, input, self._features_first)
        return self._call(input, scale, shift, residual, mask, lengths, domain)

    def _straight(self, input: Tensor | PackedSequence, residual: Tensor | None) -> Any:
        """What the call gives, where such a call was made before and nothing has changed since."""
        ways = _ways.get(self)
        if ways is None or type(input) is not Tensor or not input.is_cpu or input.layout is not torch.strided:
            return None
        way = ways.get((input.shape, input.stride(), input.dtype))
        if way is None or input.is_neg():
            return None
        parameters = self._parameters
        history = None if way.history is None else self.history
        return way(input, parameters.get("weight"), parameters.get("bias"), residual, history, self)

    def _remember_way(self, input: Tensor, recipe: Recipe, history: History | None) -> None:
        """Keep what this plain call has found out."""
        parameters = self._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is not self.weight or bias is not self.bias:
            return
        way = Straight.of(recipe, input, weight, bias, history, self.training)
        if way is not None:
            ways = _ways.setdefault(self, {})
            if len(ways) >= _MOST_WAYS:
                ways.clear()
            ways[input.shape, input.stride(), input.dtype] = way

    def __setattr__(self, name: str, value: Any) -> None:
        _ways.pop(self, None)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        _ways.pop(self, None)
        super().__delattr__(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        _ways.pop(self, None)
        return super()._apply(fn, recurse)

    def _call(
        self,
        input: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        domain: str | None = None,
    ) -> Any:
        recipe, weight, bias = self.recipe, self.weight, self.bias
        place: int | None = None
        if domain is not None or isinstance(recipe.statistics, PerDomain):
            recipe, place = self._of_domain(recipe, domain)
        self.check(input, recipe, mask is not None or lengths is not None)
        if mask is not None or lengths is not None:
            mask = self.lay_mask(input, recipe, mask, lengths)
        if scale is not None or shift is not None:
            recipe, weight, bias = self._given(recipe, input, scale, shift)
        if residual is not None and recipe.epilogue.residual == "before":
            return self._of_sum(input, residual, recipe, weight, bias, mask, place)
        return self.normalize(input, recipe, weight, bias, residual, mask, place)

    def normalize(
        self,
        input: Tensor,
        recipe: Recipe,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        place: int | None,
    ) -> Tensor:
        """One call of the engine; then, last of all, the history takes it in."""
        history, tag = self.history, None
        if mask is None and place is None:
            straight = self._first(input, residual, recipe, weight, bias)
            if straight is not None:
                return straight
        if place is not None and history is not None:
            history = history.of(place)
        kept = history
        if not recipe.source.is_alone:
            if not self.number:
                # Its statistics were assigned after it was made.
                self._take_number()
            tag = Tag(self.number, place or 0)
            history = self._as_before(history)
        y, after = run(
            *(recipe, input, weight, bias, history, self.training, self),
            residual=residual,
            mask=mask,
            tag=tag,
            least=self.least_values,
        )
        if kept is not None and after is not None:
            kept.become(after)
        return y

    def _first(self, input: Tensor, residual: Tensor | None, recipe: Recipe, weight: Any, bias: Any) -> Any:
        """A plain call that goes the way of all later ones: a recomputation must save what its call saved."""
        plain = weight is self.weight and bias is self.bias and recipe == self.recipe
        if torch.compiler.is_compiling() or not plain:
            return None
        verify(recipe, input, weight, bias, self.history, self.training, self)
        self._remember_way(input, recipe, self.history)
        return self._straight(input, residual)

    def _of_sum(
        self, input: Tensor, residual: Tensor, recipe: Recipe, weight: Any, bias: Any, mask: Any, place: Any
    ) -> tuple[Tensor, Tensor]:
        """y of input + residual, and the sum: in one sweep where this batch alone decides, and all of it at once."""
        refuse_residual(input, residual, self)
        alone = self.history is None and mask is None and recipe.source.is_alone
        if not alone or residual.dtype != input.dtype or self.smallest(input, recipe)[0] is not recipe.pattern:
            total = input + residual
            return self.normalize(total, recipe, weight, bias, None, mask, place), total
        found = self._first(input, residual, recipe, weight, bias)
        return run_of_sum(recipe, input, residual, weight, bias, self) if found is None else found

    def _as_before(self, history: History | None) -> History | None:
        """The history that this call should read: a recomputation reads the one that its call read."""
        if history is None or not self.training or torch.compiler.is_compiling():
            return history
        if recomputing():
            return self.before or history
        self.before = history.copied()
        return history

    def _of_domain(self, recipe: Recipe, domain: str | None) -> tuple[Recipe, int]:
        """The recipe of one domain, and its place among the histories."""
        if not isinstance(recipe.statistics, PerDomain):
            raise ValueError(f"{self}: got domain={domain!r}, but the layer has one history; make it PerDomain")
        with naming(str(self)):
            place, member = recipe.statistics.member(domain)
        return replace(recipe, statistics=member), place

    def lay_mask(self, input: Tensor, recipe: Recipe, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The mask of this call, with the input's axes."""
        with naming(str(self)):
            if mask is not None and lengths is not None:
                raise ValueError("give mask= or lengths=, which is its prefix form, and not both")
            binding, features = self._bound(recipe, input), self.features
            if lengths is not None:
                return masks.from_lengths(lengths, input, binding, features)
            assert mask is not None
            return masks.lay(mask, input, binding, features)

    def _bound(self, recipe: Recipe, input: Tensor) -> Binding:
        """The pattern on an input, whose axes masks and parameters are laid on."""
        return recipe.pattern.bind(input.shape)

    @property
    def _features_first(self) -> bool:
        """Whether the features of a sequence are on axis 1, before the positions."""
        return hasattr(self, "num_features") or hasattr(self, "num_channels")

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

    def check(self, input: Tensor, recipe: Recipe, masked: bool = False) -> None:
        """Refuse a shape that the layer does not take, before anything is written."""
        if not isinstance(input, Tensor):
            raise TypeError(f"{self}: expected a tensor, got {type(input).__name__}")
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        fault = _shape_fault(self.forms, getattr(self, "num_features", None), input.shape)
        remembers = self.history is not None and recipe.statistics.remembers(self.training)
        counted = not masked and not remembers and not recipe.source.is_merged and 0 not in input.shape
        if fault is None and self.least_values > 1 and counted:
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
        binding = self._bound(recipe, input)
        try:
            affine, scale, shift = affine_of(recipe.affine, binding, input.shape, scale, shift)
        except (TypeError, ValueError) as fault:
            raise type(fault)(f"{self}: {fault}") from None
        return replace(recipe, affine=affine), scale, shift


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

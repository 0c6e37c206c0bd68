"""What a normalizer does to an input: what shares statistics, how many there are, who computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.explain.explanation import Explanation
from evenorm.explain.sizing import lacks_samples
from evenorm.kernels import Candidate, Signature, candidates, choice, eager, must_compose, triton
from evenorm.kernels import mask as masks
from evenorm.kernels.operands import dense_strides
from evenorm.layers.layer import Layer
from evenorm.pattern import Pattern, PatternError, naming
from evenorm.plan import Plan, Unplannable, make_plan
from evenorm.recipe import Recipe

__all__ = ["Explanation", "explain"]


def explain(
    normalizer: Layer | Pattern | str,
    x: Tensor | Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    device: torch.device | str | None = None,
    affine: str | Affine = "",
    kernel: str | None = None,
    mask: Tensor | None = None,
    **sizes: int,
) -> Explanation:
    """Say what a normalizer does to an input. Nothing is normalized and nothing changes.

    Args:
        normalizer: a layer, in training or in evaluation as it stands; or a pattern.
        x: the input, or its shape.
        dtype: of the input where only its shape is given; the layer's unless given.
        channels_last: whether the channels lie innermost in memory, likewise.
        device: where the call would be made, likewise; ``"cuda"`` is answered for without a GPU too.
        affine: the axes of weight and bias, for a pattern.
        kernel: the kernel to use, by name; the layer's choice unless given.
        mask: which positions are valid, as the call takes it; what it leaves of each statistic is noted.
        sizes: sizes of a pattern's axes, ``g=8``.

    Returns:
        An :class:`Explanation`: print it, or read its fields.

    Raises:
        PatternError: the pattern cannot be read or does not fit the shape.
        ValueError: the layer does not take the shape, or the mask does not fit it.
        TypeError: neither a layer nor a pattern, or a tensor of integers.
        KernelError: there is no kernel of that name.

    >>> found = explain("[n] c [...]", (32, 64, 28, 28), affine="c")
    >>> found.values, found.statistics, found.parameters
    (25088, 64, 128)
    """
    shape = tuple(x.shape if isinstance(x, Tensor) else x)
    layer = normalizer if isinstance(normalizer, Layer) else None
    if layer is not None:
        recipe = layer.recipe
        if affine or sizes:
            raise ValueError(f"explain: affine and sizes describe a pattern; {layer} has its own")
    elif isinstance(normalizer, (str, Pattern)):
        recipe = _recipe(normalizer, shape, affine, sizes)
    else:
        raise TypeError(
            f"explain: expected a layer of evenorm or a pattern, got {type(normalizer).__name__}; "
            f"build evenorm's layer of that name, or write its pattern, '[n] c [...]'"
        )
    if not isinstance(x, Tensor):
        x = _blank(layer, shape, dtype, channels_last)
    elif dtype or channels_last or device:
        raise ValueError("explain: dtype, channels_last and device describe a shape; the tensor has its own")
    if not x.is_floating_point():
        raise TypeError(f"explain: expected a floating-point tensor, got {x.dtype}; choose a dtype like float32")
    if kernel:
        recipe = replace(recipe, kernel=kernel)
    place = x.device.type if device is None else _place(device)
    return _of_pattern(recipe, x, place, mask) if layer is None else _of_layer(layer, recipe, x, place, mask)


def _recipe(pattern: str | Pattern, shape: tuple[int, ...], affine: str | Affine, sizes: dict[str, int]) -> Recipe:
    """The recipe of a pattern, which must fit the shape."""
    try:
        parsed = Pattern.parse(pattern, **sizes) if isinstance(pattern, str) else pattern.with_sizes(**sizes)
        parsed.bind(shape)
        return Recipe(parsed, affine=affine if isinstance(affine, Affine) else Affine(affine))
    except PatternError as fault:
        where = "" if str(shape) in fault.message else f" (shape {shape})"
        # What is missing, is missing at the end.
        at = len(fault.text) if fault.at is None else fault.at
        raise PatternError(f"explain: {fault.message}{where}", fault.text, at) from None


def _blank(layer: Layer | None, shape: tuple[int, ...], dtype: torch.dtype | None, channels_last: bool) -> Tensor:
    """A tensor that is planned for and never read."""
    weight = None if layer is None else layer.weight
    if dtype is None:
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"explain: expected a tensor or its shape, got {shape}")
    order = (shape[0], *shape[2:], shape[1]) if channels_last and len(shape) > 2 else shape
    try:
        x = torch.empty(order, dtype=dtype, device=None if weight is None else weight.device)
    except RuntimeError:
        raise ValueError(
            f"explain: a tensor of shape {shape} does not fit into memory; explain a smaller batch"
        ) from None
    return x.movedim(-1, 1) if order is not shape else x


def _place(device: torch.device | str) -> str:
    """The kind of a device, which need not be there."""
    try:
        return torch.device(device).type
    except RuntimeError:
        raise ValueError(f"explain: expected a device like cpu or cuda, got {device!r}") from None


def _of_pattern(recipe: Recipe, x: Tensor, place: str, mask: Tensor | None) -> Explanation:
    if mask is not None:
        with naming("explain"):
            mask = masks.lay(mask, x, recipe.pattern.bind(x.shape), recipe.affine.axes)
    parameters = 2 * prod(recipe.pattern.bind(x.shape).sizes(recipe.affine.axes)) if recipe.affine.axes else 0
    subject = f"Normalization over {recipe.pattern}"
    return _found(subject, recipe, recipe.pattern, x, place, parameters=parameters, mask=mask)


def _of_layer(layer: Layer, recipe: Recipe, x: Tensor, place: str, mask: Tensor | None) -> Explanation:
    pattern, history, note = recipe.pattern, layer.history, ""
    if lacks_samples(type(layer), x.dim()):
        x, note = x[None], "The input is one sample; n is the axis that it lacks."
        mask = None if mask is None else mask[None]
    layer.check(x, recipe, mask is not None)
    if mask is not None:
        mask = layer.lay_mask(x, recipe, mask, None)
    chunk = getattr(layer, "virtual_batch_size", None)
    remembers = history is not None and recipe.statistics.remembers(layer.training)
    if remembers:
        pattern = Pattern.parse(recipe.remembered)
    elif chunk and x.shape[0] % chunk:
        x, pattern, note = _whole_chunks(pattern, x, chunk)
        mask = mask if mask is None or mask.shape[0] == 1 else mask[: x.shape[0]]
    # What torch has buffers for too.
    kept = [t for t in (history or ())[:3] if t is not None]
    own = [t for t in (layer.weight, layer.bias) if t is not None]
    try:
        pattern.bind(x.shape)
    except PatternError as fault:
        raise fault.named(layer) from None
    return _found(
        str(layer),
        recipe,
        pattern,
        x,
        place,
        others=(*own, *kept),
        parameters=sum(t.numel() for t in own),
        history_bytes=sum(t.numel() * t.element_size() for t in kept),
        remembers=remembers,
        note=note,
        mask=mask,
    )


def _whole_chunks(pattern: Pattern, x: Tensor, chunk: int) -> tuple[Tensor, Pattern, str]:
    """The virtual batches of full size; the short one alone where there is no other."""
    samples = x.shape[0]
    tail = samples % chunk
    short = pattern.with_sizes(n=tail).bind(x[-tail:].shape)
    if tail == samples:
        return x, pattern.with_sizes(n=tail), f"All samples fit into one virtual batch of {chunk}."
    note = (
        f"This is about the whole virtual batches, {samples - tail:,} of the {samples:,} samples. The other "
        f"{tail:,} make a short one: {prod(short.statistics_shape):,} more statistics of {short.count:,} "
        f"values each."
    )
    return x[:-tail], pattern, note


def _found(
    subject: str,
    recipe: Recipe,
    pattern: Pattern,
    x: Tensor,
    place: str,
    *,
    others: Sequence[Tensor] = (),
    parameters: int,
    history_bytes: int = 0,
    remembers: bool = False,
    note: str = "",
    mask: Tensor | None = None,
) -> Explanation:
    binding = pattern.bind(x.shape)
    signature = Signature.of(x, mask)._replace(device=place)
    answers, chosen = _kernels(recipe, pattern, signature, must_compose(x, *others))
    notes = (note, "" if mask is None else _valid(mask, x, pattern, remembers), _assumed(place))
    return Explanation(
        subject=subject,
        recipe=recipe,
        pattern=pattern,
        shape=tuple(x.shape),
        dtype=x.dtype,
        memory_format=_memory_format(x),
        device=place,
        statistics=prod(binding.statistics_shape),
        values=binding.count,
        parameters=parameters,
        history_bytes=history_bytes,
        plan=_plan(pattern, recipe.affine, x),
        candidates=answers,
        chosen=chosen,
        remembers=remembers,
        note=" ".join(filter(None, notes)),
    )


def _assumed(place: str) -> str:
    """What an answer for a GPU takes for granted where there is none to ask."""
    if place != "cuda" or torch.cuda.is_available():
        return ""
    return f"There is no GPU here: the answer is for {triton.FIT}, with what is installed here."


def _valid(mask: Tensor, x: Tensor, pattern: Pattern, remembers: bool) -> str:
    """What a mask leaves."""
    valid = int(mask.expand(x.shape).sum())
    found = f"The mask leaves {valid:,} of {x.numel():,} values; the others come out as zeros"
    if remembers or not x.numel():
        return f"{found}."
    counts = masks.counts(mask, pattern.bind(x.shape))
    empty = int((counts == 0).sum())
    without = f", and {empty:,} of {counts.numel():,} have none" if empty else ""
    return f"{found}. A statistic has {int(counts.min()):,} to {int(counts.max()):,} of them{without}."


def _kernels(
    recipe: Recipe, pattern: Pattern, signature: Signature, composed: str | None
) -> tuple[tuple[Candidate, ...], str | None]:
    """Every kernel's answer, and who takes the call; ``composed`` is why plain operations must."""
    answers = candidates(signature, pattern, recipe.affine)
    if composed is not None:
        answers = [a if a.name == eager.name else Candidate(a.name, a.reason or composed) for a in answers]
        return tuple(answers), eager.name
    asked = [a for a in answers if a.name == recipe.kernel]
    if asked and asked[0].reason is not None:
        return tuple(answers), None
    return tuple(answers), choice(signature, pattern, recipe.affine, recipe.kernel).name


def _plan(pattern: Pattern, affine: Affine, x: Tensor) -> Plan | str:
    # Outputs are dense: in the input's order, without its gaps.
    dense = dense_strides(x.shape, x.stride())
    try:
        return make_plan(pattern, affine, x.shape, x.stride(), dense)
    except Unplannable as reason:
        return str(reason)


def _memory_format(x: Tensor) -> str:
    if x.is_contiguous():
        return "contiguous"
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return "channels last"
    return f"strides {tuple(x.stride())}"

"""The proof of an operation: outputs before and after, and the bound that rounding alone explains.

The bound is measured and not guessed: what the output moves by when the input and every parameter are rounded
once more, each in a random direction. A model that amplifies rounding gets a wide bound, any other a tight one.
Half precision, in which rounding hides mistakes, is proved in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from evenorm.surgery.snapshot import untouched

__all__ = ["Inputs", "Proof", "ProofError", "observe", "prove", "widened"]

_DRAWS = 3
# Rounding happens at each operation and not at parameters alone; so many times the measured effect is allowed.
_SHARE = 16.0
_LEAST = 4.0


class ProofError(RuntimeError):
    """An operation changed what the model computes by more than rounding; the model is as it was."""


@dataclass(frozen=True)
class Proof:
    """The largest difference of the outputs and its bound, both in units of eps · max|y|."""

    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference; NaN explains nothing."""
        return self.error <= self.bound

    @property
    def figures(self) -> str:
        """Both in short, without their unit.

        >>> Proof(1.43, 5678.0).figures
        '1.4 of 5,678'
        """
        return f"{_short(self.error)} of {_short(self.bound)}"

    def __str__(self) -> str:
        return f"{_short(self.error)} eps·max|y|, where rounding explains {_short(self.bound)}"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    @staticmethod
    def of(example: Any) -> Inputs:
        """From a tensor, a tuple or list of arguments, or a mapping of keyword arguments."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            return Inputs((), dict(example))
        if isinstance(example, (tuple, list)):
            return Inputs(tuple(example))
        if isinstance(example, Tensor):
            return Inputs((example,))
        raise TypeError(
            f"example_inputs: expected a tensor, a tuple of arguments or a dict of keyword arguments, "
            f"got {type(example).__name__}"
        )

    def __call__(self, model: nn.Module) -> Any:
        """Call the model with copies, since it may write into its inputs."""
        args, kwargs = self.copied()
        return model(*args, **kwargs)

    def copied(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, copied."""
        return copy.deepcopy(tree_map_only(Tensor, torch.Tensor.detach, (self.args, dict(self.kwargs or {}))))

    def map(self, function: Any) -> Inputs:
        """The same arguments with each floating-point tensor replaced."""
        args, kwargs = tree_map_only(Tensor, lambda t: function(t) if t.is_floating_point() else t, self.copied())
        return Inputs(args, kwargs)

    def random(self) -> Inputs:
        """Arguments of the same shapes with other values, always the same; integers and booleans stay."""
        generator = torch.Generator().manual_seed(0)
        return self.map(lambda t: torch.randn(t.shape, generator=generator).to(t.device, t.dtype))


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in an output, however nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))


def widened(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Model and inputs; copies in float32 where any of the model is in half precision."""
    half = (torch.float16, torch.bfloat16)
    if not any(t.dtype in half for t in (*model.parameters(), *model.buffers())):
        return model, inputs
    return copy.deepcopy(model).float(), inputs.map(lambda t: t.float() if t.dtype in half else t)


def observe(model: nn.Module, inputs: Inputs, *, training: bool | None = False) -> list[Tensor]:
    """The outputs of one call; the model, its buffers and the random numbers stay what they were.

    ``training=None`` leaves each module in its mode.
    """
    with untouched(model):
        if training is not None:
            model.train(training)
        torch.manual_seed(0)
        return [t.detach().clone() for t in tensors(inputs(model))]


def prove(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    model: nn.Module,
    inputs: Inputs,
    *,
    training: bool | None = False,
) -> Proof:
    """Compare two lists of outputs; ``model`` and ``inputs`` say how far rounding moves them."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return Proof(math.inf, 0.0)
    plain = observe(model, inputs, training=training)
    moved = [_moved(model, inputs, training, seed) for seed in range(_DRAWS)]
    error = bound = 0.0
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.numel() == 0:
            continue
        unit = torch.finfo(old.dtype).eps * _largest(old)
        if unit == 0:
            unit = torch.finfo(old.dtype).tiny
        found = _distance(old, new) / unit
        effect = max(_distance(plain[index], other[index]) for other in moved) / unit
        allowed = _SHARE * effect + _LEAST
        if math.isnan(found) or found - allowed > error - bound or not bound:
            error, bound = found, allowed
    return Proof(error, bound)


def _moved(model: nn.Module, inputs: Inputs, training: bool | None, seed: int) -> list[Tensor]:
    """The outputs after one more rounding of input, parameters and buffers."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t.detach().clone()
        signs = torch.randint(0, 2, t.shape, generator=generator).to(t.device, t.dtype) * 2 - 1
        return t.detach() * (1 + torch.finfo(t.dtype).eps * signs)

    with untouched(model):
        if training is not None:
            model.train(training)
        state = {name: rounded(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
        args, kwargs = inputs.map(rounded).copied()
        torch.manual_seed(0)
        return [t.detach().clone() for t in tensors(functional_call(model, state, args, kwargs))]


def _largest(t: Tensor) -> float:
    finite = t[torch.isfinite(t)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _distance(a: Tensor, b: Tensor) -> float:
    """max|a − b|; infinite values that agree count nothing, NaN in one alone is infinite."""
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    difference = torch.where(same, 0.0, (a.double() - b.double()).abs())
    return float(difference.nan_to_num(nan=math.inf).max())

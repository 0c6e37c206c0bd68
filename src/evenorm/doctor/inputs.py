"""A batch, however it enters the model, and what leaves it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Inputs", "mapped", "tensors"]


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model's forward: a tensor is the only argument, a tuple all of them, a dict keywords."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(batch: Any) -> Inputs:
        """Read a batch as a person passes it."""
        if isinstance(batch, Inputs):
            return batch
        if isinstance(batch, Mapping):
            return Inputs((), dict(batch))
        if isinstance(batch, (tuple, list)):
            return Inputs(tuple(batch), {})
        return Inputs((batch,), {})

    @staticmethod
    def loaded(item: Any, model: nn.Module) -> Inputs:
        """Read what a loader yields: of (inputs, targets) as many as the model's forward requires."""
        if isinstance(item, Mapping) or not isinstance(item, (tuple, list)):
            return Inputs.of(item)
        return Inputs(tuple(item[: max(_required(model), 1)]), {})

    def __call__(self, model: nn.Module) -> Any:
        """The model's answer."""
        return model(*self.args, **self.kwargs)

    @property
    def samples(self) -> int:
        """Samples: the first axis of the first tensor that has axes; 0 where there is none."""
        return next((t.shape[0] for t in tensors((self.args, self.kwargs)) if t.dim()), 0)

    def rows(self, index: Tensor) -> Inputs:
        """Some of the samples, in some order."""
        samples = self.samples

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)] if tensor.dim() and tensor.shape[0] == samples else tensor

        return self.mapped(pick)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Every tensor replaced."""
        return Inputs(mapped(self.args, function), mapped(dict(self.kwargs), function))


def _required(model: nn.Module) -> int:
    """Positional parameters of the forward without a default."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in places and p.default is inspect.Parameter.empty for p in parameters)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with every tensor replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, function) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(v, function) for v in value)
    if type(value) is dict:
        return {key: mapped(v, function) for key, v in value.items()}
    return value


def tensors(value: Any, depth: int = 6) -> list[Tensor]:
    """The tensors of a nested value, in order."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or isinstance(value, (str, bytes)):
        return []
    if isinstance(value, Mapping):
        inner: Sequence[Any] = list(value.values())
    elif isinstance(value, (tuple, list)):
        inner = value
    elif is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, torch.distributions.Distribution):
        inner = [vars(value)[name] for name in value.arg_constraints if name in vars(value)]
    else:
        return []
    return [tensor for part in inner for tensor in tensors(part, depth - 1)]

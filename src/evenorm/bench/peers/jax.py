"""JAX: the formulas as flax writes them, through ``jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from evenorm.bench.case import Case, Data
from evenorm.bench.peers import Outputs, Unavailable

__all__ = ["Jitted"]

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "hardswish": jax.nn.hard_swish,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
}


class Jitted:
    """A case as one jitted function of its arrays. Nothing is donated; every call waits for its result.

    Channels-last tensors are arrays whose last axis is the channels, which is how JAX's users write them.
    Variances are E[x²] − E[x]² in float32, flax's default.
    """

    def __init__(self, case: Case, data: Data) -> None:
        jax.config.update("jax_platforms", "cpu")
        self.case = case
        self.last = case.channels_last
        self.eps: Any = case.ours().eps
        self.names = ["x", "weight", "bias"] + ["residual"] * (case.residual is not None)
        if case.family == "RMSNorm":
            self.names.remove("bias")
        self.arguments = [self._array(getattr(data, name)) for name in self.names]
        self.history = (self._array(data.mean), self._array(data.variance))
        dy = self._array(data.dy)
        self.dy = dy if data.d_total is None else (dy, self._array(data.d_total))
        self.both = jax.jit(self._both)
        self.forward = jax.jit(self._forward)

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed."""
        if direction == "backward":
            raise Unavailable("a jitted gradient includes its forward")
        if direction == "forward":
            return lambda: jax.block_until_ready(self.forward(self.arguments, self.history))
        return lambda: jax.block_until_ready(self.both(self.arguments, self.history, self.dy))

    def outputs(self) -> Outputs:
        """y without and with gradients, and every gradient."""
        bare, _ = self.forward(self.arguments, self.history)
        y, _, gradients = self.both(self.arguments, self.history, self.dy)
        found = {"y without grad": bare, "y": y}
        if isinstance(y, tuple):
            found = {"y without grad": bare[0], "y": y[0], "sum": y[1]}
        found |= {f"d{name}": gradient for name, gradient in zip(self.names, gradients, strict=True)}
        return {name: self._back(array) for name, array in found.items()}

    def _forward(self, arguments: list[Any], history: tuple[Any, Any]) -> tuple[Any, Any]:
        """y, and the running statistics after this step."""
        given = dict(zip(self.names, arguments, strict=True))
        total = given["x"] + given["residual"] if self.case.residual == "before" else given["x"]
        x = total.astype(jnp.float32)
        split, axes = self._split(x)
        if self.case.uses_history:
            mean, variance = (self._wide(h) for h in history)
        else:
            mean = 0.0 if self.case.family == "RMSNorm" else jnp.mean(split, axes, keepdims=True)
            variance = jnp.maximum(jnp.mean(split * split, axes, keepdims=True) - mean * mean, 0)
            if self.case.family == "BatchNorm":
                history = self._moved(history, mean, variance)
        x_hat = ((split - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        y = x_hat * self._wide(given["weight"].astype(jnp.float32))
        if "bias" in given:
            y = y + self._wide(given["bias"].astype(jnp.float32))
        if self.case.residual == "after":
            y = y + given["residual"].astype(jnp.float32)
        if self.case.activation is not None:
            y = _ACTIVATIONS[self.case.activation](y)
        y = y.astype(total.dtype)
        return (y, total) if self.case.residual == "before" else y, history

    def _both(self, arguments: list[Any], history: tuple[Any, Any], dy: Any) -> tuple[Any, Any, Any]:
        y, pull, history = jax.vjp(lambda given: self._forward(given, history), arguments, has_aux=True)
        return y, history, pull(dy)[0]

    def _moved(self, history: tuple[Any, Any], mean: Any, variance: Any) -> tuple[Any, Any]:
        count = self.case.elements / mean.size
        new = (mean.reshape(-1), variance.reshape(-1) * (count / (count - 1)))
        return tuple(0.9 * old + 0.1 * value for old, value in zip(history, new, strict=True))

    def _split(self, x: Any) -> tuple[Any, tuple[int, ...]]:
        """The array with its groups apart, and the axes that share statistics."""
        family, last = self.case.family, x.ndim - 1
        channel = last if self.last else 1
        if family == "BatchNorm":
            return x, tuple(i for i in range(x.ndim) if i != channel)
        if family == "InstanceNorm":
            return x, tuple(i for i in range(1, x.ndim) if i != channel)
        if family == "GroupNorm":
            groups, size = self.case.groups, x.shape[channel]
            shape = (*x.shape[:channel], groups, size // groups, *x.shape[channel + 1 :])
            return x.reshape(shape), tuple(i for i in range(1, x.ndim + 1) if i != channel)
        return x, (channel if self.case.layer == "LayerNorm2d" else last,)

    def _wide(self, parameter: Any) -> Any:
        """A parameter as it broadcasts against the input."""
        if self.last or self.case.layer in ("LayerNorm", "RMSNorm"):
            return parameter
        return parameter.reshape(1, -1, *(1,) * (len(self.case.shape) - 2))

    def _array(self, tensor: Tensor) -> Any:
        tensor = tensor.detach()
        if self.last and tensor.dim() == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        if tensor.dtype == torch.bfloat16:
            return jnp.asarray(tensor.view(torch.int16).numpy().view(jnp.bfloat16))
        return jnp.asarray(tensor.numpy())

    def _back(self, array: Any) -> Any:
        found = np.asarray(array, np.float32)
        return found.transpose(0, 3, 1, 2) if self.last and found.ndim == 4 else found

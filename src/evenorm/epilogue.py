"""The epilogue: what follows the affine in the same sweep over memory, an activation and a residual.

Activations are recomputed in the backward pass from what the normalization saves anyway, so a fused layer
keeps no more than torch's separate ones, and one tensor less where the activation would keep its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "Epilogue", "Place"]

Place = Literal["after", "before"]
"""Where a residual is added: to the normalized values before the activation, or to the input."""


class Activation(NamedTuple):
    """A function of each value, and its derivative.

    ``by_output`` says that the derivative can be read from the output: the input need not be known again.
    """

    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    by_output: bool = False


def _sigmoid_share(z: Tensor) -> Tensor:
    share = torch.sigmoid(z)
    return share * (1 + z * (1 - share))


def _normal_share(z: Tensor) -> Tensor:
    share = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    return share + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _tanh_share(z: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = torch.tanh(scale * (z + cubic * z**3))
    return 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh * tanh) * scale * (1 + 3 * cubic * z * z)


ACTIVATIONS = {
    "identity": Activation(lambda z, _: z, lambda z, _: torch.ones_like(z), by_output=True),
    "relu": Activation(lambda z, _: F.relu(z), lambda z, _: (z > 0).to(z.dtype), by_output=True),
    "relu6": Activation(lambda z, _: F.relu6(z), lambda z, _: ((z > 0) & (z < 6)).to(z.dtype), by_output=True),
    "leaky_relu": Activation(
        lambda z, slope: F.leaky_relu(z, slope),
        lambda z, slope: torch.where(z > 0, torch.ones_like(z), slope),
        by_output=True,
    ),
    "silu": Activation(lambda z, _: F.silu(z), lambda z, _: _sigmoid_share(z)),
    "hardswish": Activation(
        lambda z, _: F.hardswish(z),
        lambda z, _: torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5)).to(z.dtype),
    ),
    "gelu": Activation(lambda z, _: F.gelu(z), lambda z, _: _normal_share(z)),
    "gelu_tanh": Activation(lambda z, _: F.gelu(z, approximate="tanh"), lambda z, _: _tanh_share(z)),
}


@dataclass(frozen=True)
class Epilogue:
    """An activation by name, its slope (leaky ReLU), and where a residual goes.

    Raises:
        ValueError: an unknown activation or place, or a slope that is not positive.

    >>> print(Epilogue("leaky_relu", 0.2))
    leaky_relu(0.2)
    """

    activation: str = "identity"
    slope: float = 0.01
    residual: Place = "after"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"there is no activation {self.activation!r}; choose among {', '.join(ACTIVATIONS)}")
        if self.residual not in ("after", "before"):
            raise ValueError(f"a residual is added 'after' or 'before' the normalization, got {self.residual!r}")
        if not self.slope > 0:
            raise ValueError(f"the slope of a leaky ReLU must be positive, got {self.slope!r}")

    @staticmethod
    def of(activation: str | Epilogue | None) -> Epilogue:
        """An epilogue from what a layer was given: nothing, a name, or an epilogue."""
        if isinstance(activation, Epilogue):
            return activation
        return Epilogue() if activation is None else Epilogue(activation)

    @property
    def by_output(self) -> bool:
        """Whether the derivative can be read from the output."""
        return ACTIVATIONS[self.activation].by_output

    def apply(self, z: Tensor) -> Tensor:
        """The activation."""
        return ACTIVATIONS[self.activation].function(z, self.slope)

    def derivative(self, z: Tensor) -> Tensor:
        """The activation's derivative at its input; at its output where ``by_output``."""
        return ACTIVATIONS[self.activation].derivative(z, self.slope)

    def __str__(self) -> str:
        return f"leaky_relu({self.slope:g})" if self.activation == "leaky_relu" else self.activation

"""The finish: all that happens to a normalized value, and the tensors that it takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue

__all__ = ["Finish"]


@dataclass(frozen=True, eq=False)
class Finish:
    """y = activation(x̂ · (offset + weight) + bias + residual).

    In the backward pass ``output`` may stand for the residual, where the activation's derivative can be read
    from it.
    """

    affine: Affine
    epilogue: Epilogue
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    output: Tensor | None = None

    @property
    def has_residual(self) -> bool:
        """Whether the backward pass owes a residual its gradient."""
        return self.residual is not None or self.output is not None

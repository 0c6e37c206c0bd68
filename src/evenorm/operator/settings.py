"""The plain values of a call, which operators take."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from evenorm.affine import Affine
from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.kernels import KernelError, eager
from evenorm.pattern import Pattern
from evenorm.recipe import Recipe

__all__ = ["SCHEMA", "Settings"]


class Settings(NamedTuple):
    """The plain values of a call, in the order of the operator's schema."""

    pattern: str
    axes: str = ""
    centered: bool = True
    eps: float = 1e-5
    offset: float = 0.0
    cast: Any = "after"
    activation: str = "identity"
    slope: float = 0.01
    kernel: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, pattern: str, axes: str, dtype: torch.dtype) -> Settings:
        """Those of a recipe on inputs of a dtype, with the pattern and the affine's axes of this call."""
        affine, epilogue = recipe.affine, recipe.epilogue
        return cls(
            *(pattern, axes, recipe.centered, recipe.eps_for(dtype), affine.offset, affine.cast),
            *(epilogue.activation, epilogue.slope, recipe.kernel),
        )

    def parsed(self) -> tuple[Pattern, Affine, Epilogue]:
        """The parts that the values spell."""
        return _parse(self)

    def allow_composed(self, reason: str) -> None:
        """Refuse a call that torch's own operations must make, where another kernel was asked for.

        Raises:
            KernelError: with the reason.
        """
        if self.kernel not in (None, eager.name):
            raise KernelError(f"kernel {self.kernel!r} cannot take this call: {reason}")


@cached
def _parse(settings: Settings) -> tuple[Pattern, Affine, Epilogue]:
    affine = Affine(settings.axes, settings.offset, settings.cast)
    return Pattern.parse(settings.pattern), affine, Epilogue(settings.activation, settings.slope)


SCHEMA = (
    "str pattern, str axes, bool centered, float eps, float offset, str cast, str activation, float slope, str? kernel"
)
"""The same for the schema of an operator."""

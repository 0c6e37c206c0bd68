"""A case: one layer, what it is given, and what it should compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenorm import Pattern
from evenorm.affine import Cast
from evenorm.layers.layer import Layer

__all__ = ["Case", "Shape"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One layer, its inputs and the sentence that it should be."""

    name: str
    make: Callable[[], Layer]
    shapes: tuple[Shape, ...]
    # The pattern of a whole chunk where there are chunks.
    pattern: str
    # Axes of weight and bias in that pattern.
    affine: str = "c"
    twin: Callable[[], nn.Module] | None = None
    centered: bool = True
    offset: float = 0.0
    cast: Cast = "after"
    # Samples that share statistics in training.
    chunk: int | None = None
    # Axes of scale and shift given at the call, and the shape they come in where it is not theirs.
    given: str = ""
    given_as: Callable[[Shape], Shape] | None = None
    shifted: bool = True
    # What the history normalizes with; its share of a new batch, None for 1 / updates.
    remembered: str = "[n] c [...]"
    momentum: float | None = 0.1
    frozen: bool = False
    # Whether a fused kernel can plan it.
    fused: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def shape(self) -> Shape:
        """The first shape: small, for what is slow."""
        return self.shapes[0]

    def layer(self, dtype: torch.dtype = torch.float64, kernel: str | None = None) -> Layer:
        """The layer with parameters and a history that are not the initial ones."""
        layer = self.make().to(dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(1.0 - self.offset, 0.5)
            if isinstance(mean := getattr(layer, "running_mean", None), Tensor):
                mean.normal_()
                layer.get_buffer("running_var").uniform_(0.5, 2.0)
                layer.get_buffer("num_batches_tracked").fill_(3)
        if kernel is not None:
            layer.kernel = kernel
        return layer

    def options(self, shape: Shape, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """What the call is given beside the input: scale and shift, or nothing."""
        if not self.given:
            return {}
        size = Pattern.parse(self.pattern).bind(shape).sizes(self.given.split())
        names = ("scale", "shift") if self.shifted else ("scale",)
        size = self.given_as(shape) if self.given_as else size
        return {name: torch.randn(size, dtype=dtype) + 0.5 for name in names}

    def normalizes_by_history(self, layer: Layer) -> bool:
        """Whether this call takes its statistics from the history."""
        return layer.history is not None and (self.frozen or not layer.training)

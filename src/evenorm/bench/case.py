"""A case: one layer on one tensor, in one dtype, memory format and mode."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.epilogue import Epilogue, Place

__all__ = ["Case", "Data"]

# As in networks: what RMSNorm takes in Llama, and LayerNorm over channels in ConvNeXt.
_EPS = 1e-6
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """What is measured: a layer, by its class's name, on a shape that a network gives it."""

    network: str
    layer: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    channels_last: bool = False
    training: bool = True
    groups: int = 32
    activation: str | None = None
    residual: Place | None = None
    parameters: str | None = None
    """The dtype of weight and bias, where it is not what the layer's family has."""
    hidden: float = 0.0
    """The share of positions, on average, that are padding, which a mask hides."""

    @property
    def elements(self) -> int:
        """Values of the input."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the input."""
        return self.elements * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def family(self) -> str:
        """The layer's name without its number of dimensions: ``"BatchNorm"``."""
        return self.layer.rstrip("123d") if self.layer[-1] == "d" else self.layer

    @property
    def sliced_axis(self) -> int:
        """An axis whose slices are normalized independently of one another."""
        return 1 if self.family == "BatchNorm" else 0

    @property
    def uses_history(self) -> bool:
        """Whether the running statistics normalize."""
        return self.family == "BatchNorm" and not self.training

    @property
    def sweeps(self) -> int:
        """Sweeps over a tensor that no cache holds: two where the values of each statistic lie all over it."""
        return 2 if self.family == "BatchNorm" and (self.channels_last or len(self.shape) == 2) else 1

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Batch normalization keeps float32 parameters, as under autocast; the others have the input's dtype."""
        if self.parameters is not None:
            dtype: torch.dtype = getattr(torch, self.parameters)
            return dtype
        return torch.float32 if self.family == "BatchNorm" else self.torch_dtype

    @property
    def size(self) -> str:
        """The shape as it is printed."""
        return "×".join(map(str, self.shape)) + (" cl" if self.channels_last else "")

    @property
    def title(self) -> str:
        """What cases under one heading share."""
        parts = [self.what.replace("norm", self.layer)]
        if self.family == "BatchNorm":
            parts.append("training" if self.training else "evaluation")
        parts += ["masked"] if self.hidden else []
        weight = f", {self.parameters} weight" if self.parameters is not None else ""
        return " · ".join([*parts, self.dtype + weight])

    @property
    def fuses(self) -> bool:
        """Whether anything is fused with the layer."""
        return self.activation is not None or self.residual is not None

    @property
    def what(self) -> str:
        """What is fused with what, whatever the layer: ``"norm+add+relu"``."""
        before, after = ("add",) * (self.residual == "before"), ("add",) * (self.residual == "after")
        return "+".join([*before, "norm", *after, *([self.activation] if self.activation else [])])

    def arguments(self) -> tuple[tuple[int, ...], dict[str, object]]:
        """The constructor's arguments, which are torch's."""
        channels = self.shape[1]
        options: dict[str, object] = {}
        if self.family == "InstanceNorm":
            options = {"affine": True}
        if self.layer == "GroupNorm":
            return (self.groups, channels), options
        if self.family == "RMSNorm":
            options = {"eps": _EPS}
        return (self.shape[-1] if self.layer in ("LayerNorm", "RMSNorm") else channels,), options

    def ours(self, fused: bool = False) -> nn.Module:
        """Our layer, with the epilogue in it or without."""
        arguments, options = self.arguments()
        if fused and self.fuses:
            options["activation"] = Epilogue(self.activation or "identity", residual=self.residual or "after")
        return self._prepared(getattr(evenorm, self.layer)(*arguments, **options))

    def torchs(self) -> nn.Module:
        """Torch's layer, or what its users write where it has none."""
        arguments, options = self.arguments()
        if self.layer in ("LayerNorm2d", "RMSNorm2d"):
            # ConvNeXt's eps, which is ours too.
            return self._prepared(_Permuted(getattr(nn, self.family)(*arguments, eps=_EPS)))
        module = self._prepared(getattr(nn, self.layer)(*arguments, **options))
        return _Masked(module, self.family == "BatchNorm") if self.hidden else module

    def _prepared(self, layer: nn.Module) -> nn.Module:
        return layer.to(self.parameter_dtype).train(self.training)


class _Permuted(nn.Module):
    """What torch's users write in place of a norm over channels: channels to the end, the norm, channels back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.norm(input.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class _Masked(nn.Module):
    """What torch's users write for padded sequences: sums over what is there, in float32, and zeros elsewhere."""

    def __init__(self, norm: Any, together: bool) -> None:
        super().__init__()
        self.norm = norm
        self.axes = (0, 2) if together else (2,)

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        there = mask[:, None]
        x = input.float()
        count = there.sum(self.axes, keepdim=True)
        mean = (x * there).sum(self.axes, keepdim=True) / count
        deviation = (x - mean) * there
        variance = deviation.square().sum(self.axes, keepdim=True) / count
        if self.norm.running_mean is not None:
            with torch.no_grad():
                unbiased = variance * count / (count - 1)
                self.norm.running_mean.lerp_(mean.flatten(), self.norm.momentum)
                self.norm.running_var.lerp_(unbiased.flatten(), self.norm.momentum)
        y = deviation * torch.rsqrt(variance + self.norm.eps)
        y = (y * self.norm.weight[:, None] + self.norm.bias[:, None]) * there
        return y.to(input.dtype)


@dataclass
class Data:
    """The tensors of a case, shared by all variants: the same numbers in the same memory."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    residual: Tensor | None
    d_total: Tensor | None
    """The cotangent of the sum, where a residual is added before the normalization."""
    mask: Tensor | None = None
    """Which positions of which samples are there, where some are padding: sequences of different lengths."""

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Data:
        """Random numbers: x ~ N(½, 1.5²), cotangents and residuals ~ N(0, 1), weights near 1, biases near 0."""
        source = np.random.Generator(np.random.SFC64(seed))
        channels = case.shape[-1] if case.layer in ("LayerNorm", "RMSNorm") else case.shape[1]

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(source.standard_normal(shape, np.float32))

        def laid(tensor: Tensor) -> Tensor:
            if case.channels_last:
                tensor = tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.dim()])
            return tensor.to(case.torch_dtype)

        return cls(
            laid(draw(*case.shape).mul_(1.5).add_(0.5)).requires_grad_(),
            laid(draw(*case.shape)),
            (1 + 0.2 * draw(channels)).to(case.parameter_dtype),
            (0.2 * draw(channels)).to(case.parameter_dtype),
            0.5 + 0.2 * draw(channels),
            1.5 + draw(channels).abs() / 2,
            laid(draw(*case.shape)).requires_grad_() if case.residual else None,
            laid(draw(*case.shape)) if case.residual == "before" else None,
            _lengths(case, source) if case.hidden else None,
        )

    def on(self, device: str) -> Data:
        """The same numbers on a device, as leaves of their own where they were elsewhere."""
        if self.x.device.type == device:
            return self
        moved = (None if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in self._tensors)
        return Data(*moved)  # type: ignore[arg-type]

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return (
            *(self.x, self.dy, self.weight, self.bias, self.mean, self.variance),
            *(self.residual, self.d_total, self.mask),
        )

    def load(self, module: nn.Module) -> nn.Module:
        """Give the layer in a module these parameters and running statistics."""
        values = {"weight": self.weight, "bias": self.bias, "running_mean": self.mean, "running_var": self.variance}
        with torch.no_grad():
            for name, kept in (*module.named_parameters(), *module.named_buffers()):
                value = values.get(name.rpartition(".")[2])
                if value is not None:
                    kept.copy_(value)
        return module


def _lengths(case: Case, source: np.random.Generator) -> Tensor:
    """A mask of lengths that differ by as much as they can, one of them whole."""
    longest = case.shape[-1]
    lengths = source.uniform(1 - 2 * case.hidden, 1, case.shape[0]) * longest
    lengths[0] = longest
    return torch.arange(longest) < torch.from_numpy(lengths)[:, None].clamp_min(2)

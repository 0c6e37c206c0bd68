"""What a linear layer becomes when a scale and a shift of its output, or of its input, are taken into its weights.

W'·x + b' = s·(W·x + b) + t   after the layer, for every kind of it;
W'·x + b' = W·(s·x + t) + b   before it, where every output is a sum over the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from evenorm.surgery.trace import has_other_forward

__all__ = ["Weights", "absorb_after", "absorb_before", "channel_axis", "why_not_linear"]


@dataclass(frozen=True)
class Weights:
    """Weight and bias in float64."""

    weight: Tensor
    bias: Tensor

    def put_into(self, layer: nn.Module) -> None:
        """Give them to a layer, as parameters of its own in its dtype; whoever shared the old ones keeps those."""
        old: Any = layer.weight
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            setattr(layer, name, nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad))


_LINEAR: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def why_not_linear(module: nn.Module) -> str | None:
    """Why a module is no linear layer whose weights can be replaced; ``None`` if it is one."""
    base = next((kind for kind in _LINEAR if isinstance(module, kind)), None)
    if base is None:
        return f"{type(module).__name__} is no convolution or Linear of torch's"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return f"the weight of {type(module).__name__} is computed from others (parametrization, weight_norm)"
    kind: Any = type(module)
    same = kind.forward is base.forward and getattr(kind, "_conv_forward", 0) is getattr(base, "_conv_forward", 0)
    if not same or has_other_forward(module):
        return f"{type(module).__name__} has a forward of its own"
    return None


def channel_axis(layer: nn.Module, dims: int) -> int:
    """The axis of channels of a linear layer's input and output of so many axes."""
    if isinstance(layer, nn.Linear):
        return dims - 1
    assert isinstance(layer, _ConvNd)
    return dims - len(layer.kernel_size) - 1


def _read(layer: Any) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().double()
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return weight, weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach().double()


def _by_groups(layer: Any, weight: Tensor) -> Tensor:
    """The weight as (groups, outputs, inputs, taps), outputs and inputs being those of one group."""
    if isinstance(layer, nn.Linear):
        return weight[None, :, :, None]
    groups, weight = layer.groups, weight.flatten(2)
    grouped = weight.unflatten(0, (groups, -1))
    return grouped.transpose(1, 2) if isinstance(layer, _ConvTransposeNd) else grouped


def _ungrouped(layer: Any, grouped: Tensor) -> Tensor:
    if isinstance(layer, _ConvTransposeNd):
        grouped = grouped.transpose(1, 2)
    return grouped.reshape(layer.weight.shape)


def absorb_after(layer: nn.Module, scale: Tensor, shift: Tensor) -> Weights:
    """The weights of scale · layer(x) + shift."""
    weight, bias = _read(layer)
    grouped = _by_groups(layer, weight)
    grouped = grouped * scale.double().view(grouped.shape[0], -1, 1, 1)
    return Weights(_ungrouped(layer, grouped), bias * scale.double() + shift.double())


def absorb_before(layer: nn.Module, scale: Tensor, shift: Tensor) -> Weights | str:
    """The weights of layer(scale · x + shift), or why there are none."""
    if bool((shift != 0).any()) and not _sums_everywhere(layer):
        return f"{type(layer).__name__} pads its input with zeros, which the shift would have to reach"
    weight, bias = _read(layer)
    grouped = _by_groups(layer, weight)
    scale, shift = (t.double().view(grouped.shape[0], 1, -1, 1) for t in (scale, shift))
    added = (grouped * shift).sum((2, 3)).flatten()
    return Weights(_ungrouped(layer, grouped * scale), bias + added)


def _sums_everywhere(layer: Any) -> bool:
    """Whether every output is a sum over all weights: nothing is padded with zeros."""
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, _ConvTransposeNd):
        # Outputs at the border, or between strides, see fewer taps.
        plain = (*layer.kernel_size, *layer.stride), (*layer.padding, *layer.output_padding)
        return set(plain[0]) == {1} and set(plain[1]) == {0}
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return True
    if layer.padding == "same":
        return set(layer.kernel_size) == {1}
    return set(layer.padding) == {0}

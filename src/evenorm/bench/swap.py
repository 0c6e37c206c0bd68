"""A model's layers in place of themselves: torch's and transformers' by class, with the same parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

import evenorm

__all__ = ["swap"]


def _batch_norm(layer: Any) -> nn.Module:
    with warnings.catch_warnings():
        # MobileNetV2's momentum of 0.997 is transformers' choice.
        warnings.simplefilter("ignore")
        return evenorm.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)


def _layer_norm(layer: Any) -> nn.Module:
    if getattr(layer, "data_format", "") == "channels_first":
        return evenorm.LayerNorm2d(layer.normalized_shape[0], layer.eps)
    return evenorm.LayerNorm(layer.normalized_shape, layer.eps)


def _rms_norm(layer: Any) -> nn.Module:
    return evenorm.RMSNorm(layer.weight.shape[0], layer.variance_epsilon, cast="before")


_BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "BatchNorm2d": _batch_norm,
    "LayerNorm": _layer_norm,
    "ConvNextLayerNorm": _layer_norm,
    "LlamaRMSNorm": _rms_norm,
}


def swap(model: nn.Module) -> nn.Module:
    """Put our layers in place of a model's own; parameters and buffers stay the same objects."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            build = _BUILDERS.get(type(layer).__name__)
            if build is not None and not isinstance(layer, evenorm.layers.layer.Layer):
                ours = build(layer).train(layer.training)
                ours._parameters, ours._buffers = layer._parameters, layer._buffers
                setattr(parent, name, ours)
    return model

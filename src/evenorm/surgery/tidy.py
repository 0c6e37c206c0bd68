"""Small repairs: biases that a normalizer cancels, momenta of the other convention, groups for weight decay."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.layers.remembering import BatchLayer
from evenorm.surgery.absorb import why_not_linear
from evenorm.surgery.change import become
from evenorm.surgery.fixed import is_normalizer
from evenorm.surgery.fold import sources
from evenorm.surgery.proof import Inputs, ProofError, observe, prove, widened
from evenorm.surgery.record import Recording, record
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.snapshot import atomic

__all__ = ["drop_dead_bias", "fix_momentum", "split_weight_decay"]


def drop_dead_bias(model: nn.Module, example_inputs: Any, *, inplace: bool = True, report: bool = False) -> Any:
    """Remove the biases of linear layers whose output goes into batch or instance normalization alone.

    A constant for each channel is subtracted again with the channel's mean, so such a bias is never trained. The
    running means give it up, so that evaluation stays what it was. Which layer follows which is recorded while the
    model runs on the example, as for :func:`fold`.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    Raises:
        ProofError: the outputs in evaluation changed by more than rounding; the model is as it was.

    >>> model = drop_dead_bias(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), torch.randn(2, 2, 8))
    >>> model[0].bias is None
    True
    """
    found = SurgeryReport("drop_dead_bias")
    inputs = Inputs.of(example_inputs)
    with torch.no_grad():
        trial = copy.deepcopy(model)
        _drop(trial, inputs, found)
        if found.changed:
            wide = widened(model, inputs)
            found.proof = prove(observe(*wide), observe(*widened(trial, inputs)), *wide)
            if not found.proof.holds:
                raise ProofError(f"drop_dead_bias: the outputs changed by {found.proof}; the model is as it was")
        if not inplace:
            return (trial, found) if report else trial
        with atomic(model, values=True):
            _drop(model, inputs, SurgeryReport("drop_dead_bias"))
    return (model, found) if report else model


def _drop(model: nn.Module, inputs: Inputs, report: SurgeryReport) -> None:
    flow = _recorded(model, inputs)
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    for norm, calls in flow.calls.items():
        if not _subtracts_channel_means(norm):
            continue
        layers = sources(norm, 1, calls, flow)
        if isinstance(layers, str):
            report.refuse(paths[norm], type(norm).__name__, layers)
            continue
        biased = [layer for layer in layers if isinstance(layer._parameters.get("bias"), Tensor)]
        means = norm._buffers.get("running_mean")
        if means is not None and len({_values(layer) for layer in layers}) > 1:
            report.refuse(paths[norm], type(norm).__name__, "the layers before it have different biases")
            continue
        if biased and means is not None:
            means.sub_(biased[0].get_parameter("bias").detach().to(means.dtype))
        for layer in biased:
            layer.register_parameter("bias", None)
            report.did(paths[layer], type(layer).__name__, f"no bias; {paths[norm]} subtracts it", "biases dropped")


def _recorded(model: nn.Module, inputs: Inputs) -> Recording:
    modes = [(m, m.training) for m in model.modules()]
    try:
        return record(model.eval(), inputs, lambda m: is_normalizer(m) or why_not_linear(m) is None)
    finally:
        for module, mode in modes:
            module.training = mode


def _subtracts_channel_means(norm: nn.Module) -> bool:
    return isinstance(norm, (nn.modules.batchnorm._NormBase, BatchLayer))


def _values(layer: Any) -> tuple[float, ...]:
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return (0.0,) * size if layer.bias is None else tuple(layer.bias.detach().double().tolist())


def fix_momentum(model: nn.Module, *, inplace: bool = True, report: bool = False) -> Any:
    """Turn momenta from 0.9 to 1, which mean a decay in other frameworks, into torch's: 0.99 becomes 0.01.

    Torch's momentum is the new batch's share: with 0.99 a running average is nearly the last batch alone.

    Args:
        model: any module.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    >>> fix_momentum(nn.Sequential(nn.BatchNorm1d(3, momentum=0.99)))[0].momentum
    0.01
    """
    found = SurgeryReport("fix_momentum")
    target = model if inplace else copy.deepcopy(model)
    with atomic(target):
        for path, layer in target.named_modules():
            momentum = layer.__dict__.get("momentum")
            if _subtracts_channel_means(layer) and isinstance(momentum, float) and 0.9 <= momentum < 1:
                # 1 - 0.99 is 0.010000000000000009; fifteen digits give back what was meant.
                share = float(f"{1 - momentum:.15g}")
                become(layer, type(layer), {"momentum": share})
                found.did(path, type(layer).__name__, f"momentum {momentum:g} → {share:g}", "momenta turned")
    return (target, found) if report else target


def split_weight_decay(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two groups of parameters for an optimizer: weights that decay, and those that should not.

    Weights and biases of normalizers, all biases and all other vectors get no decay: shrinking them regularizes
    nothing. Parameters that are not trained are in neither group, shared ones once.

    Args:
        model: any module.
        weight_decay: of the first group.

    Returns:
        Groups for ``torch.optim``: ``[{"params": …, "weight_decay": …}, {"params": …, "weight_decay": 0.0}]``.

    Raises:
        ValueError: a negative weight decay.

    >>> groups = split_weight_decay(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), 0.1)
    >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
    [(1, 0.1), (3, 0.0)]
    """
    if not weight_decay >= 0:
        raise ValueError(f"split_weight_decay: weight_decay must be 0 or more, got {weight_decay!r}")
    spared = {p for m in model.modules() if is_normalizer(m) for p in m.parameters(recurse=False)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [p for name, p in trained if p not in spared and p.dim() > 1 and not name.endswith("bias")]
    decaying = set(decays)
    others = [p for _, p in trained if p not in decaying]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

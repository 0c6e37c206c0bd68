"""accelerate() and revert(): a model's normalizers in our kernels, and back."""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn

from evenorm.layers import Layer
from evenorm.surgery.change import become, restore
from evenorm.surgery.freeze import unfreeze
from evenorm.surgery.fuse import fuse
from evenorm.surgery.proof import Inputs, ProofError, observe, prove, widened
from evenorm.surgery.recognize import recognize
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.snapshot import atomic

__all__ = ["accelerate", "revert"]


def accelerate(model: nn.Module, example_inputs: Any = None, *, inplace: bool = True, report: bool = False) -> Any:
    """Put our layers in place of every normalizer that is known, and fuse what follows them.

    The layers themselves stay the objects they are and change their class: parameters, buffers, hooks, names,
    modes, dtypes and devices are untouched, and so is every optimizer. Known are torch's layers, and layers of any
    other class that compute the same when they are probed (Llama's and Gemma's RMSNorm, ConvNeXt's LayerNorm).

    A module whose data flow torch.fx can follow gets a forward in which a normalizer and the activation module
    after it are one call. With example inputs functional activations and residual additions are fused as well,
    each such forward is proved on its own inputs, and the model as a whole. A fused forward gives way to the
    module's own where anything differs from what was traced (a hook, another mode, another child), and under
    compilers and exporters.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    Raises:
        ProofError: the outputs differ by more than rounding explains; the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model, report = accelerate(model, report=True)
    >>> print(report)
    accelerate: 1 replaced, 1 activations fused
    1: BatchNorm2d → evenorm.BatchNorm2d
    1: Sequential → normalization, relu
    """
    found = SurgeryReport("accelerate")
    target = model if inplace else copy.deepcopy(model)
    inputs = None if example_inputs is None else Inputs.of(example_inputs)
    with atomic(target):
        before = None if inputs is None else observe(*widened(target, inputs))
        _replace(target, found)
        fuse(target, inputs, found)
        if inputs is not None and before is not None:
            found.proof = prove(before, observe(*widened(target, inputs)), *widened(target, inputs))
            if not found.proof.holds:
                raise ProofError(f"accelerate: the outputs changed by {found.proof}; the model is as it was")
    return (target, found) if report else target


def _replace(model: nn.Module, report: SurgeryReport) -> None:
    for path, module in model.named_modules():
        twin = recognize(module)
        if isinstance(twin, str):
            report.refuse(path, type(module).__name__, twin)
        elif twin is not None:
            before = type(module).__name__
            become(module, twin.kind, twin.attributes)
            cast(Layer, module).validate()
            report.did(path, before, f"evenorm.{type(module).__name__}", "replaced")


def revert(model: nn.Module, *, inplace: bool = True, report: bool = False) -> Any:
    """Make every layer what it was before :func:`accelerate`, :func:`convert` or :func:`freeze`.

    Args:
        model: the model that was changed; parameters trained since keep their values.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    >>> model = accelerate(nn.Sequential(nn.LayerNorm(4)))
    >>> type(revert(model)[0]) is nn.LayerNorm
    True
    """
    found = SurgeryReport("revert")
    target = model if inplace else copy.deepcopy(model)
    with atomic(target):
        unfreeze(target)
        for path, module in target.named_modules():
            became = restore(module)
            if became is not None:
                found.did(path, became, type(module).__name__, "reverted")
    return (target, found) if report else target

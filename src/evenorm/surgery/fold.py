"""fold(): normalizers with fixed statistics, and the affine of the others, into the linear layers beside them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evenorm.epilogue import Epilogue
from evenorm.surgery.absorb import Weights, absorb_after, absorb_before, channel_axis, why_not_linear
from evenorm.surgery.fixed import Fixed, find_fixed, is_normalizer, remainder
from evenorm.surgery.moves import Moves, moved_axes
from evenorm.surgery.proof import Inputs, Proof, ProofError, observe, prove, widened
from evenorm.surgery.record import Call, Link, Recording, record
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.rewrite import is_hooked
from evenorm.surgery.snapshot import atomic

__all__ = ["fold", "sources"]


def fold(model: nn.Module, example_inputs: Any, *, inplace: bool = True, report: bool = False) -> Any:
    r"""Take normalizers into the weights of the convolutions and Linear layers before or after them.

    .. math:: W' = W \cdot s, \quad b' = b \cdot s + t, \qquad
        s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \quad t = \beta - \mu s

    Batch normalization in evaluation is such a scale s and shift t, and disappears. Layer and RMS normalization
    keep their statistics and give γ and β to the linear layers that follow.

    Which layer follows which is recorded while the model runs on the example: two layers belong together if one
    reads the tensor that the other wrote and nothing else does; it may have been transposed or reshaped on the way,
    as before a Linear of (N, L, C), if the channels stay what they are. A layer that is called several times is
    folded only if all its calls agree. What cannot be folded is left, with the reason in the report.

    The folding is done on a copy first and compared with the model, on the example and on random inputs of its
    shapes. Whoever shares a weight with a folded layer keeps the old one.

    Args:
        model: a model in evaluation.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned.

    Returns:
        The model.

    Raises:
        ValueError: the model is in training.
        ProofError: the folded copy differs by more than rounding explains; the model is as it was.

    Source:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference" (2018), section 3.2.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fold(model, torch.randn(1, 3, 8, 8))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    if model.training:
        raise ValueError(
            "fold: the model is in training, where statistics come from each batch; call model.eval() first"
        )
    inputs = Inputs.of(example_inputs)
    with torch.no_grad():
        found = _proved(model, inputs)
        target = model if inplace else copy.deepcopy(model)
        with atomic(target):
            _fold_all(target, inputs, SurgeryReport("fold"))
    return (target, found) if report else target


def _proved(model: nn.Module, inputs: Inputs) -> SurgeryReport:
    """Fold a copy and compare; half precision, in which rounding hides mistakes, in float32 first."""
    wide, wide_inputs = widened(model, inputs)
    if wide is not model:
        _folded_copy(wide, wide_inputs)
    return _folded_copy(model, inputs)


def _folded_copy(model: nn.Module, inputs: Inputs) -> SurgeryReport:
    found = SurgeryReport("fold")
    folded = copy.deepcopy(model)
    _fold_all(folded, inputs, found)
    if not found.changed:
        return found
    for given in (inputs, inputs.random()):
        proof = prove(observe(model, given), observe(folded, given), model, given)
        if found.proof is None or not proof.holds or proof.error > found.proof.error:
            found.proof = proof
        if not proof.holds:
            raise ProofError(f"fold: the outputs changed by {proof}; the model is as it was\n{found}")
    return found


def _fold_all(model: nn.Module, inputs: Inputs, report: SurgeryReport) -> None:
    """Fold until nothing is left that can be: one folding may bring the next two layers together."""
    left = SurgeryReport("fold")
    while _fold_once(model, inputs, report, left):
        left = SurgeryReport("fold")
    report.rows += left.rows


def _fold_once(model: nn.Module, inputs: Inputs, report: SurgeryReport, left: SurgeryReport) -> bool:
    """One recorded run and the foldings that it allows; no layer takes part in two of them."""
    flow = record(model, inputs, lambda m: is_normalizer(m) or why_not_linear(m) is None)
    touched: set[nn.Module] = set()
    paths: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        paths.setdefault(module, path)
    for norm, path in paths.items():
        folding = _plan(norm, flow) if is_normalizer(norm) else None
        if isinstance(folding, str):
            left.refuse(path, type(norm).__name__, folding)
        elif folding is not None and not touched & {norm, *folding.layers}:
            proof = folding.proof()
            if proof.holds:
                work = "folded" if folding.part.whole else "affines folded"
                into = " and ".join(paths[layer] for layer in folding.layers)
                report.did(path, type(norm).__name__, f"{type(folding.rest).__name__}, the rest in {into}", work, proof)
                folding.carry_out()
                touched |= {norm, *folding.layers}
            else:
                left.refuse(path, type(norm).__name__, "the folded layers differ by more than rounding", proof)
    return bool(touched)


@dataclass
class _Folding:
    """A normalizer, its fixed part, and the linear layers that take it, which it comes ``after`` or before."""

    norm: nn.Module
    part: Fixed
    links: dict[nn.Module, Link]
    weights: dict[nn.Module, Weights]
    after: bool

    def __post_init__(self) -> None:
        self.rest = remainder(self.norm, self.part)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.links)

    def proof(self) -> Proof:
        """The two layers and what becomes of them, on the tensor that was recorded: the worst of all pairs."""
        proofs = []
        for layer, link in self.links.items():
            new = copy.deepcopy(layer)
            self.weights[layer].put_into(new)
            between = Moves(link.moves)
            old = (layer, between, self.norm) if self.after else (self.norm, between, layer)
            folded = (new, between, self.rest) if self.after else (self.rest, between, new)
            before, after = (nn.Sequential(*map(copy.deepcopy, pair)).eval() for pair in (old, folded))
            given = Inputs((link.first.given,))
            proofs.append(prove(observe(before, given), observe(after, given), before, given))
        return max(proofs, key=lambda p: (not p.holds, p.error))

    def carry_out(self) -> None:
        """Change the layers; the normalizer stays the same object, for whoever else holds it."""
        for layer, weights in self.weights.items():
            weights.put_into(layer)
        self.norm.__dict__.clear()
        self.norm.__dict__.update(self.rest.__dict__)
        self.norm.__class__ = type(self.rest)


def _plan(norm: nn.Module, flow: Recording) -> _Folding | str | None:
    """How a normalizer can be folded, or why it cannot; ``None`` where there is nothing to fold."""
    calls = flow.calls.get(norm)
    if not calls:
        return "the example inputs do not reach it"
    if is_hooked(norm):
        return "a hook hangs on it"
    if any(flow.is_read(t) for t in (*norm.parameters(), *norm.buffers())):
        return "its parameters are used elsewhere"
    part = find_fixed(norm, calls)
    if not isinstance(part, Fixed):
        return part
    reasons = []
    for attempt in (_after, _before) if part.whole else (_before,):
        found = attempt(norm, part, calls, flow)
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return "; ".join(reasons)


def _after(norm: nn.Module, part: Fixed, calls: Sequence[Call], flow: Recording) -> _Folding | str:
    """Into the layers whose outputs the normalizer reads, if it reads all of them and nobody else does."""
    taken = sources(norm, part.axis, calls, flow)
    if isinstance(taken, str):
        return f"before it: {taken}"
    weights = {layer: absorb_after(layer, part.scale, part.shift) for layer in taken}
    return _Folding(norm, part, taken, weights, after=True)


def sources(norm: nn.Module, axis: int, calls: Sequence[Call], flow: Recording) -> dict[nn.Module, Link] | str:
    """The linear layers that a normalizer reads, if it reads all of their output and nobody else does."""
    taken: dict[nn.Module, Link] = {}
    for call in calls:
        link = flow.before(call)
        if link is None:
            return "what it reads is not the output of a convolution or Linear"
        reason = _why_not(link.first.layer, flow)
        if reason is not None:
            return reason
        taken.setdefault(link.first.layer, link)
    for layer in taken:
        for call in flow.calls[layer]:
            links = flow.after(call)
            if not all(isinstance(link, Link) and link.second.layer is norm for link in links):
                return f"the output of {type(layer).__name__} is used elsewhere, too"
            if not links or not all(isinstance(k, Link) and axis in _outputs(k) for k in links):
                return f"{type(layer).__name__} has its channels on another axis"
    return taken


def _outputs(link: Link) -> set[int]:
    """The axes that a linear layer's outputs lie on where they are read."""
    result = link.first.result
    if result is None or not link.first.plain:
        return set()
    return moved_axes(link.moves, result, channel_axis(link.first.layer, result.dim()))


def _before(norm: nn.Module, part: Fixed, calls: Sequence[Call], flow: Recording) -> _Folding | str:
    """Into the layers that read the normalizer's output, if they read nothing else and nobody else does."""
    if part.epilogue != Epilogue():
        return "after it: an activation follows"
    taken: dict[nn.Module, Link] = {}
    weights: dict[nn.Module, Weights] = {}
    for call in calls:
        links = flow.after(call)
        if not links:
            return "after it: nothing reads its output"
        for link in links:
            if not isinstance(link, Link):
                return f"after it: its output goes to {link}"
            reader = link.second.layer
            reason = _why_not(reader, flow)
            if reason is not None:
                return f"after it: {reason}"
            if not _fits(link, part.axis):
                return f"after it: {type(reader).__name__} has its channels on another axis"
            taken.setdefault(reader, link)
    for layer in taken:
        writers = [flow.before(call) for call in flow.calls[layer]]
        if not all(link is not None and link.first.layer is norm for link in writers):
            return f"after it: {type(layer).__name__} reads other tensors, too"
        found = absorb_before(layer, part.scale, part.shift)
        if isinstance(found, str):
            return f"after it: {found}"
        weights[layer] = found
    return _Folding(norm, part, taken, weights, after=False)


def _why_not(layer: nn.Module, flow: Recording) -> str | None:
    reason = why_not_linear(layer)
    if reason is None and is_hooked(layer):
        reason = f"a hook hangs on {type(layer).__name__}"
    if reason is None and any(flow.is_read(p) for p in layer.parameters()):
        reason = f"the weight of {type(layer).__name__} is used elsewhere"
    return reason


def _fits(link: Link, axis: int) -> bool:
    """Whether a linear layer's inputs are what lay on an axis, and no dtype changes on the way."""
    source, result, read = link.first.source, link.first.result, link.second.source
    if source is None or result is None or read is None or source.dtype != result.dtype:
        return False
    return channel_axis(link.second.layer, read.dim()) in moved_axes(link.moves, result, axis)

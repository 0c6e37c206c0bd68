"""examine(): a model meets the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import SEVERITIES, Finding, Place, Symptom
from evenorm.doctor.inputs import Inputs
from evenorm.doctor.rule import Rule, selected
from evenorm.doctor.subject import Intent, Subject
from evenorm.surgery.loading import brief

__all__ = ["admit", "examine", "judge"]


def examine(
    model: nn.Module,
    batch: Any = None,
    *,
    loader: Iterable[Any] | None = None,
    optimizer: Optimizer | None = None,
    state_dict: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
    reference: nn.Module | None = None,
    config: Any = None,
    intent: Intent = "train",
    causal: bool = False,
    batch_size: int | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    ignore_paths: Mapping[str, Sequence[str]] | None = None,
) -> Examination:
    """Find what is wrong with the normalization of a model, by experiments that leave it as it was.

    Args:
        model: the model, in the mode in which it is used.
        batch: one batch: a tensor, a tuple of all arguments, or a dict of keywords. It is a probe: what depends
            on the size of batches is an info unless ``loader`` or ``batch_size`` is given.
        loader: the data loader of the training.
        optimizer: the optimizer of the training.
        state_dict: a checkpoint to be loaded into the model; or those of all ranks, in a list.
        reference: the model that this one was made from, by conversion, fusion or export.
        config: the configuration that the model should follow (``rms_norm_eps``, …).
        intent: what the model is for: ``"train"``, ``"finetune"``, ``"infer"`` or ``"export"``.
        causal: whether outputs must not depend on later inputs.
        batch_size: of the training, per process.
        select, ignore: codes, their beginnings, or names of rules.
        ignore_paths: codes to ignore by pattern of module paths: ``{"encoder.*": ["EN401"]}``.

    Returns:
        An :class:`Examination`: iterate over its findings, print it, or ask ``.ok``.

    Raises:
        TypeError: the model is no module.
        ValueError: an unknown intent, or a selection that matches no rule.

    >>> found = examine(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99)))
    >>> [(finding.code, finding.severity, finding.path) for finding in found]
    [('EN112', 'error', '1')]
    """
    subject = admit(
        model,
        batch,
        loader=loader,
        optimizer=optimizer,
        state_dict=state_dict,
        reference=reference,
        config=config,
        intent=intent,
        causal=causal,
        batch_size=batch_size,
    )
    return judge(subject, selected(select, ignore), ignore_paths or {})


def admit(model: nn.Module, batch: Any = None, *, intent: Intent = "train", **given: Any) -> Subject:
    """The subject of an examination, from the arguments of :func:`examine`.

    Raises:
        TypeError: the model is no module.
        ValueError: an unknown intent.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"examine: expected a torch.nn.Module, got {type(model).__name__}; pass the model itself")
    if intent not in ("train", "finetune", "infer", "export"):
        raise ValueError(f"examine: intent must be 'train', 'finetune', 'infer' or 'export', got {intent!r}")
    inputs = None if batch is None else Inputs.of(batch)
    # A compiled model's own module is examined, uncompiled.
    return Subject(getattr(model, "_orig_mod", model), inputs, intent=intent, **given)


def judge(subject: Subject, asked: Sequence[Rule], ignore_paths: Mapping[str, Sequence[str]]) -> Examination:
    """Ask every rule, and put the findings in order."""
    findings: list[Finding] = []
    try:
        _observe(subject)
        for rule in asked:
            try:
                findings += [_finding(subject, rule, symptom) for symptom in rule.check(subject)]
            except Exception as failure:
                subject.notes.append(f"{rule.code} {rule.name} could not be examined: {brief(failure)}")
    finally:
        subject.snapshot.restore()
    kept = [f for f in findings if not _ignored(f, ignore_paths)]
    kept.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.code))
    codes = tuple(rule.code for rule in asked)
    return Examination(tuple(kept), tuple(dict.fromkeys(subject.notes)), _named(subject), codes, subject.failure)


def _observe(subject: Subject) -> None:
    """Say first what cannot be examined."""
    model = subject.model
    if isinstance(model, torch.jit.ScriptModule):
        subject.notes.append("the model is scripted: only its state is examined; examine it before torch.jit.script")
    if subject.is_sharded:
        subject.notes.append("the model is sharded: only its state is examined; examine it before fully_shard")
    if not subject.sites:
        subject.notes.append("no normalization layer was found")
    if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
        subject.notes.append("lazy layers have no parameters before the first forward: run the model once")


def _finding(subject: Subject, rule: Rule, symptom: Symptom) -> Finding:
    place = Place.of(subject.model, symptom.path)
    return Finding(
        code=rule.code,
        severity=symptom.severity or rule.severity,
        path=symptom.path,
        message=symptom.message,
        advice=symptom.advice,
        evidence=dict(symptom.evidence),
        fix=symptom.fix,
        file=place.file if place else None,
        line=place.line if place else None,
    )


def _ignored(finding: Finding, ignore_paths: Mapping[str, Sequence[str]]) -> bool:
    return any(
        fnmatchcase(finding.path, pattern) and any(finding.code.startswith(code.upper()) for code in codes)
        for pattern, codes in ignore_paths.items()
    )


def _named(subject: Subject) -> str:
    sites = len(subject.sites)
    return f"{type(subject.model).__name__} with {sites} normalization layer{'s' * (sites != 1)}"

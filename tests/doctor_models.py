"""The same model in another dress: under other class names, and inside a larger one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import examine
from evenorm.doctor.inputs import mapped
from evenorm.doctor.monitor import Monitor
from evenorm.doctor.rule import Specimen


def renamed(model: nn.Module) -> nn.Module:
    """Every module under a class of its own, without a telling name.

    Classes written by hand lose their ancestors too; torch's keep theirs, as any subclass of a user does.
    """
    for number, module in enumerate(model.modules()):
        cls: type = type(module)
        bases: tuple[type, ...] = (cls,)
        body: dict[str, Any] = {}
        if not cls.__module__.startswith("torch."):
            bases, body = cls.__bases__, {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(f"Z{number}", bases, body)
    return model


class Larger(nn.Module):
    """A network in which the model is one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([part])
        self.side = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1))
        self.train(part.training)
        modes = {id(m): m.training for m in part.modules()}
        for module in self.modules():
            module.training = modes.get(id(module), module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        size = next(iter(self.side.parameters()))
        offset = self.side(torch.ones(2, 4, dtype=size.dtype, device=size.device)).sum()

        def add(y: Tensor) -> Tensor:
            return y + offset.to(y.dtype) if y.is_floating_point() else y

        return mapped(self.parts[0](*args, **kwargs), add)


def examined(specimen: Specimen, model: nn.Module, code: str) -> Examination:
    """What one rule says of a specimen, in whatever dress its model wears."""
    if specimen.loop is None:
        return examine(model, specimen.batch, select=[code], **specimen.options(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with Monitor(model, optimizer) as monitor:
        specimen.loop(model, optimizer)
    return monitor.examination(select=[code], **specimen.options(model))


def dresses(specimen: Specimen) -> Iterator[tuple[str, nn.Module]]:
    """The specimen's model as it is, embedded, and last renamed, which changes it."""
    yield "as it is", specimen.model
    yield "inside a larger model", Larger(specimen.model)
    yield "renamed", renamed(specimen.model)

"""The same model in another dress: under other class names, and inside a larger one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.examination import Examination
from evenorm.doctor.inputs import mapped
from evenorm.doctor.rule import Specimen
from evenorm.doctor.specimens import examined


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
        self.side.train(part.training)
        self.training = part.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        size = next(iter(self.side.parameters()))
        offset = self.side(torch.ones(2, 4, dtype=size.dtype, device=size.device)).sum()

        def add(y: Tensor) -> Tensor:
            return y + offset.to(y.dtype) if y.is_floating_point() else y

        return mapped(self.parts[0](*args, **kwargs), add)


DRESSES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "inside a larger model": Larger,
    "renamed": renamed,
}


def dressed(specimens: Callable[[], Iterator[Specimen]], code: str) -> Iterator[tuple[str, Examination]]:
    """Every specimen, made anew for each dress, and what one rule says of it."""
    for dress, put_on in DRESSES.items():
        for specimen in specimens():
            yield f"{specimen.about!r} {dress}", examined(specimen, put_on(specimen.model), code)

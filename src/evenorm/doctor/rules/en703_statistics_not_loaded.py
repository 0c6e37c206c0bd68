"""Running statistics that a lenient load leaves behind.

What it finds:
    A checkpoint whose running statistics stand under names that the model does not have; and a
    ``load_state_dict(strict=False)`` that was watched and missed statistics or weights of normalizers.

Why it matters:
    With ``strict=False`` the layers keep zeros and ones and nothing is said. Evaluation gives a constant class.

Instead:
    ``strict=True``, with the names mapped before; or look at the keys that ``load_state_dict`` returns.

Fix:
    None: which name is which is the author's to say.

References:
    pytorch/pytorch#6086 #8430, 2231122/PCOD#8
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.checkpoint import Checkpoint
from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare names, and read what loads in the loop returned."""
    if subject.state_dict is not None:
        checkpoint = Checkpoint.of(subject.model, subject.state_dict)
        yield from _symptom(checkpoint.lacks(subject.sites), checkpoint.spare_history)
    if subject.record is not None:
        own = {f"{site.path}." if site.path else "" for site in subject.sites if site.remembers}
        missing = [name for name in subject.record.missing if name[: name.rfind(".") + 1] in own]
        spare = [name for name in subject.record.unexpected if name.rpartition(".")[2].startswith("running_")]
        yield from _symptom([name for name in missing if "running_" in name], spare)


def _symptom(missing: list[str], spare: list[str]) -> Iterator[Symptom]:
    if missing and spare:
        yield Symptom(
            missing[0].rpartition(".")[0],
            f"{len(missing)} running statistics would stay at their initial values: the checkpoint has none called "
            f"{missing[0]}, but {len(spare)} that fit nothing, {spare[0]} first",
            "map the names and load with strict=True",
            {"missing": missing[0], "in excess": spare[0]},
        )


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())


def _elsewhere(model: nn.Module) -> dict[str, Tensor]:
    return {f"encoder.{name}": value for name, value in model.state_dict().items()}


def _leniently(model: nn.Module, optimizer: Optimizer) -> None:
    model.load_state_dict(_elsewhere(model), strict=False)


def _strictly(model: nn.Module, optimizer: Optimizer) -> None:
    model.load_state_dict(model.state_dict())


def ailing() -> Iterator[Specimen]:
    """Names that do not fit."""
    yield Specimen("an encoder's prefix", _net(), options=lambda model: {"state_dict": _elsewhere(model)})
    yield Specimen("a lenient load in the loop", _net(), loop=_leniently)


def healthy() -> Iterator[Specimen]:
    """Names that fit, and a part that is new."""
    yield Specimen("the model's own", _net(), options=lambda model: {"state_dict": model.state_dict()})
    yield Specimen("a strict load in the loop", _net(), loop=_strictly)
    yield Specimen("a new head with a norm of its own", nn.ModuleDict({"body": _net(), "head": _net()}), options=_body)


def _body(model: nn.Module) -> dict[str, object]:
    return {"state_dict": {name: t for name, t in model.state_dict().items() if "head" not in name}}

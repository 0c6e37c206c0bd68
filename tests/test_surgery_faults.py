"""Whatever goes wrong in the middle of an operation, the model is afterwards exactly what it was."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

import evenorm
from blocks import bits, image, network, same
from evenorm.surgery.moves import Moves
from evenorm.surgery.proof import Proof

Operation = Callable[[nn.Module], object]
ON_INPUTS: dict[str, Operation] = {
    "accelerate": lambda model: evenorm.accelerate(model, image()),
    "fold": lambda model: evenorm.fold(model, image()),
    "drop_dead_bias": lambda model: evenorm.drop_dead_bias(model, image()),
    "convert": lambda model: evenorm.convert(model, "renorm", image()),
    "convert weights": lambda model: evenorm.convert(model, "weights", image()),
    "recalibrate": lambda model: evenorm.recalibrate(model, [image()] * 4),
}
ROOMS = {"drop_dead_bias": "tidy"}


def state(model: nn.Module) -> list[Any]:
    """Classes, modes, attributes, hooks: what values alone do not show."""
    return [
        (type(m), [(key, dict(v) if isinstance(v, dict) else v) for key, v in m.__dict__.items()])
        for m in model.modules()
    ] + [[(p.requires_grad, p.grad) for p in model.parameters()]]


def check_untouched(model: nn.Module, operation: Operation, fault: type[BaseException]) -> None:
    before, values = state(model), bits(model)
    with pytest.raises(fault):
        operation(model)
    assert state(model) == before
    assert same(bits(model), values)


class Fragile(nn.Module):
    """Raises when it is called for the last time that is allowed; copies count together."""

    allowed, fault = math.inf, KeyboardInterrupt

    def forward(self, x: Tensor) -> Tensor:
        Fragile.allowed -= 1
        if Fragile.allowed < 0:
            raise Fragile.fault
        return x


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ON_INPUTS)
def test_interrupted_in_a_forward(
    name: str, calls: int, fault: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = nn.Sequential(network(), Fragile())
    model[0].append(nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)))
    model[0][1].register_forward_hook(lambda *_: None)
    model.eval()
    monkeypatch.setattr(Fragile, "allowed", calls)
    monkeypatch.setattr(Fragile, "fault", fault)
    check_untouched(model, ON_INPUTS[name], fault)


# Each changes two layers or more; the interruption comes when the first is done. fold() works on a copy first.
IN_PLACE: dict[str, tuple[Operation, str, str, int]] = {
    "accelerate": (evenorm.accelerate, "accelerate", "become", 1),
    "fusing": (lambda model: evenorm.accelerate(model, image()), "rewrite", "become", 1),
    "convert": (lambda model: evenorm.convert(model, "group"), "convert", "become", 1),
    "freeze": (evenorm.freeze, "freeze", "become", 1),
    "fix_momentum": (evenorm.fix_momentum, "tidy", "become", 1),
    "revert": (evenorm.revert, "accelerate", "restore", 2),
    "unfreeze": (evenorm.unfreeze, "freeze", "restore", 1),
    "fold": (lambda model: evenorm.fold(model.eval(), image()), "fold", "remainder", 4),
    "recalibrate": (lambda model: evenorm.recalibrate(model, [image()] * 2), "recalibrate", "_write", 1),
}


def interrupting(function: Any, calls: int) -> Any:
    """The function, whose last call ends in Ctrl-C after its work is done."""
    count = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        result = function(*args, **kwargs)
        if count == calls:
            raise KeyboardInterrupt
        return result

    return called


@pytest.mark.parametrize("name", IN_PLACE)
def test_interrupted_between_two_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, module, function, calls = IN_PLACE[name]
    model = network().eval()
    if name == "revert":
        evenorm.accelerate(model)
    if name == "unfreeze":
        evenorm.freeze(model)
    if name == "fix_momentum":
        model[1].momentum = model[4].momentum = 0.99
    room = importlib.import_module(f"evenorm.surgery.{module}")
    monkeypatch.setattr(room, function, interrupting(getattr(room, function), calls))
    check_untouched(model, operation, KeyboardInterrupt)


@pytest.mark.parametrize("name", ["accelerate", "fold", "drop_dead_bias", "convert"])
def test_a_failed_proof_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module(f"evenorm.surgery.{ROOMS.get(name, name)}")
    real = room.prove

    def prove(before: Any, after: Any, model: Any, *rest: Any, **options: Any) -> Proof:
        pair = isinstance(model, nn.Sequential) and any(isinstance(m, Moves) for m in model)
        return real(before, after, model, *rest, **options) if pair else Proof(2.0, 1.0)

    monkeypatch.setattr(room, "prove", prove)
    model = network().eval()
    check_untouched(model, ON_INPUTS[name], evenorm.ProofError)


def test_wrong_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers whose folding differs stay, with the figure; nothing else is asked of them."""
    room = importlib.import_module("evenorm.surgery.fold")
    right = room.absorb_after
    monkeypatch.setattr(room, "absorb_after", lambda layer, scale, shift: right(layer, scale * 1.001, shift))
    model, before = network().eval(), bits(network())
    _, report = evenorm.fold(model, image(), report=True)
    assert not report.changed
    assert all("differ by more than rounding" in row.refusal and not row.proof.holds for row in report.refused)
    assert same(bits(model), before)

"""Examining leaves a model bit for bit as it was, whatever is raised and wherever."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import evenorm
from doctor_busy import Busy, same, state
from evenorm.doctor.examine import admit, judge
from evenorm.doctor.finding import Symptom
from evenorm.doctor.rule import rules
from evenorm.doctor.snapshot import undisturbed
from evenorm.doctor.subject import Subject

FAULTS = [RuntimeError, KeyboardInterrupt]


def trained() -> Busy:
    """With gradients, a hook, and a frozen weight."""
    model = Busy()
    model(torch.randn(6, 4)).sum().backward()
    model.body[0].register_forward_hook(lambda module, args, output: None)
    model.body[0].bias.requires_grad_(False)
    Busy.passes = 0
    return model


def batch() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("intent", ["train", "infer"])
def test_a_model_is_left_bit_for_bit(intent: str) -> None:
    model = trained()
    before = state(model)
    evenorm.examine(model, batch(), intent=intent)  # type: ignore[arg-type]
    assert Busy.passes > 5
    assert same(state(model), before)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("fault", FAULTS)
def test_also_when_the_model_raises_in_any_pass(fault: type[BaseException], at: int) -> None:
    model = trained()
    model.fault = (fault, at)
    before = state(model)
    if fault is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            evenorm.examine(model, batch())
    else:
        evenorm.examine(model, batch())
    assert Busy.passes >= at
    assert same(state(model), before)


@pytest.mark.parametrize("fault", FAULTS)
def test_also_when_a_probe_raises(fault: type[BaseException]) -> None:
    def meddle(subject: Subject) -> Iterator[Symptom]:
        with subject.experiment() as model:
            model(batch()).sum().backward()
            model.eval()
            model.requires_grad_(False)
            model.register_forward_hook(lambda module, args, output: None)
            model.get_parameter("body.0.weight").data.zero_()
            model.get_submodule("body.1").reset_running_stats()  # type: ignore[operator]
            model.set_submodule("body.2", nn.Identity())
            raise fault("stop")
        yield Symptom("", "", "")

    model = trained()
    before = state(model)
    rule, subject = replace(rules()[0], check=meddle), admit(model, batch())
    if fault is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            judge(subject, [rule], {})
    else:
        assert "could not be examined: RuntimeError: stop" in judge(subject, [rule], {}).notes[0]
    assert same(state(model), before)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_monitor_takes_its_hooks_off(fault: type[BaseException]) -> None:
    model = trained()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hooks = state(model)["hooks"]
    model.fault = (fault, 2)
    model(batch())
    with pytest.raises(fault), evenorm.Monitor(model, optimizer) as monitor:
        model(batch())
    assert same(state(model)["hooks"], hooks)
    assert not optimizer._optimizer_step_post_hooks
    assert len(monitor.record.tail.calls) == 1


def test_a_change_would_be_seen() -> None:
    model = Busy()
    before = state(model)
    with undisturbed(model):
        model(torch.randn(6, 4))
        changed = state(model)
        assert {key for key in before if not same(before[key], changed[key])} == {"tensors", "modes", "random", "own"}
    assert same(state(model), before)

"""Every experiment of the lab: measuring perturbs nothing, a seed repeats, the words fit the numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")
pytest.importorskip("sklearn", reason="the extra evenorm[lab] is not installed")

from evenorm.lab import fit as training
from evenorm.lab.catalog import catalog
from evenorm.lab.experiment import Experiment, Observation
from evenorm.lab.fit import Probe, descent, fit, undisturbed
from evenorm.lab.run import Task, measure
from evenorm.lab.setting import Setting
from evenorm.lab.store import plain

# Trainings of so few steps that each experiment takes about a second.
TINY = Setting(limit=2)
# These take less than a second; the others are run by `make test-all`.
FAST = ("identity", "redundant-bias", "shift-compounds", "regularization")
EVERY = [pytest.param(one, id=slug, marks=() if slug in FAST else pytest.mark.slow) for slug, one in catalog().items()]


def fingerprint(network: nn.Module, losses: list[float]) -> str:
    state = [(name, value.detach().double().numpy().tobytes()) for name, value in network.state_dict().items()]
    return hashlib.sha256(repr((sorted(state), losses)).encode()).hexdigest()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every training of an experiment leaves its final bits here; its probes can be taken away."""
    log: dict[str, Any] = {"bits": [], "probes": True}

    def spied(network: nn.Module, batches: Any, optimize: Any, *, probes: Any = (), **more: Any) -> Any:
        trace = fit(network, batches, optimize, probes=probes if log["probes"] else (), **more)
        log["bits"].append(fingerprint(network, trace.losses))
        return trace

    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("evenorm.lab.") and getattr(module, "fit", None) is fit and module is not training:
            monkeypatch.setattr(module, "fit", spied)
    return log


@pytest.mark.parametrize("experiment", EVERY)
def test_probes_never_perturb(experiment: Experiment, recorded: dict[str, Any]) -> None:
    """Training with probes equals training without, bit for bit, as far as both go."""
    bits = []
    for probes in (True, False):
        recorded["bits"], recorded["probes"] = [], probes
        try:
            measure(Task(experiment, TINY, 0))
        except (ArithmeticError, ValueError, LookupError):
            # Without its probes a measurement has nothing to conclude from; its trainings are done.
            assert not probes
        bits.append(recorded["bits"])
    assert bits[0][: len(bits[1])] == bits[1]
    assert bool(bits[0]) == bool(bits[1])


@pytest.mark.parametrize("experiment", EVERY)
def test_a_seed_repeats(experiment: Experiment) -> None:
    first, second = (untimed(experiment, measure(Task(experiment, TINY, 1))) for _ in range(2))
    assert first == second
    json.dumps(plain(dataclasses.asdict(first)), allow_nan=False)
    drawn = {plot.key for plot in experiment.plots}
    assert set(first.curves) == drawn, "curves without a plot, or plots without curves"
    known = {claim.key for claim in experiment.claims}
    assert set(first.effects) | set(first.reasons) <= known


def untimed(experiment: Experiment, observation: Observation) -> Observation:
    """What does not depend on how fast the machine is."""
    timed = {claim.key for claim in experiment.claims if claim.timed}
    observation.effects = {key: value for key, value in observation.effects.items() if key not in timed}
    if timed:
        observation.figures = {}
        observation.curves = {key: {} for key in observation.curves}
    # Not a number is not itself.
    return Observation(**json.loads(json.dumps(plain(dataclasses.asdict(observation)))))


class Meddler(Probe):
    """Does everything that a probe may do."""

    def differentiated(self, step: int, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        torch.rand(3)
        network(torch.randn_like(batch[0]))
        network.eval()

    def updated(self, step: int, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        self.differentiated(step, network, batch)


def test_a_probe_may_forget_to_clean_up() -> None:
    def trained(probes: list[Probe]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        batches = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(4)]
        fit(network, batches, descent(0.1), probes=probes)
        return network.state_dict()

    alone, watched = trained([]), trained([Meddler()])
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_undisturbed_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the guard the meddler leaves a trace."""
    from contextlib import nullcontext

    monkeypatch.setattr(training, "undisturbed", lambda network: nullcontext())
    with pytest.raises(AssertionError):
        test_a_probe_may_forget_to_clean_up()
    network = nn.BatchNorm1d(2)
    with undisturbed(network):
        network(torch.randn(4, 2))
    torch.testing.assert_close(network.running_mean, torch.zeros(2))

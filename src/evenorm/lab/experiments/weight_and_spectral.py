"""Do weight and spectral normalization do what their formulas promise, after training too?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, Probe, descent, fit
from evenorm.lab.networks import Network, identity, perceptron
from evenorm.lab.rates import attempts, soonest
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, stream, tensors

WIDTHS = (64, 64)
RATES = (0.03, 0.1, 0.3, 1.0)
SPECTRAL_RATE = 0.1
TARGET = 0.9
# Power iterations in a step, where one may be too few.
MANY = 5


class Directions(Probe):
    """Reads, of a weight-normalized layer, how far gradient and direction are from a right angle, and ‖v‖."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps: list[int] = []
        self.cosines: list[float] = []
        self.lengths: list[float] = []

    def due(self, step: int) -> bool:
        """Every so many steps, the first among them."""
        return step % self.every == 0

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Read them, the mean over units."""
        v = network.get_parameter("1.linear.parametrizations.weight.original1")
        assert v.grad is not None
        moving = v.grad.norm(dim=1) > 0
        cosines = torch.cosine_similarity(v.grad.double(), v.detach().double())[moving].abs()
        self.steps.append(step + 1)
        self.cosines.append(float(cosines.max()) if moving.any() else 0.0)
        self.lengths.append(float(v.detach().norm(dim=1).mean()))


def every_linear(network: Network) -> list[nn.Linear]:
    """Return the linear maps, input first."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def steepest(network: Network, x: Tensor) -> float:
    """The largest singular value of the network's Jacobian, over the given inputs; ReLU networks are linear there."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: network(one[None])[0]))(x)
    return float(torch.linalg.matrix_norm(jacobian.detach().flatten(2), 2).max())


def measure(setting: Setting, seed: int) -> Observation:
    """Train with and without each, and read angles, lengths and slopes."""
    images = setting.images
    steps = setting.steps(quick=400, full=2000, large=10000)
    inputs, classes = int(np.prod(images.shape)), len(images.classes)
    found = Observation(curves={"accuracy": {}, "length": {}, "slope": {}})

    def plain() -> Network:
        return perceptron(inputs, WIDTHS, classes, identity, seed=seed)

    def weighted() -> Network:
        network = plain()
        for linear in every_linear(network):
            evenorm.weight_norm(linear)
        return network

    reached = {}
    for name, build in {"none": plain, "weight": weighted}.items():
        best = soonest(attempts(build, images, RATES, steps=steps, seed=seed, looks=100), TARGET)
        reached[name] = best.reached(TARGET)
        found.figures |= {f"steps to 90 %, {name}": reached[name], f"rate, {name}": best.rate}
        found.curves["accuracy"][name] = best.curve
    found.effects["faster"] = reached["none"] / reached["weight"]

    directions, network = Directions(max(1, steps // 40)), weighted()
    fit(network, stream(images, Schedule(64, steps, RATES[1], seed)), descent(RATES[1]), probes=[directions])
    found.effects["angle"] = max(directions.cosines, default=np.nan)
    relative = [length / directions.lengths[0] for length in directions.lengths]
    found.curves["length"]["‖v‖"] = (directions.steps, relative)

    x = tensors(images, images.test_pixels[:128], images.test_labels[:128])[0]
    slopes = {}
    for name, iterations in {"none": 0, "spectral": 1, f"spectral, {MANY} iterations": MANY}.items():
        network = plain()
        if iterations:
            for linear in every_linear(network):
                evenorm.spectral_norm(linear, n_power_iterations=iterations)
        start = steepest(network.eval(), x)
        fit(network, stream(images, Schedule(64, steps, SPECTRAL_RATE, seed)), descent(SPECTRAL_RATE))
        slopes[iterations] = steepest(network.eval(), x)
        found.curves["slope"][name] = (["at the start", "trained"], [start, slopes[iterations]])
    found.effects["bound"] = slopes[1]
    found.effects["iterated"] = slopes[MANY]
    found.effects["needed"] = slopes[0]
    return found


EXPERIMENT = Experiment(
    question="Do weight and spectral normalization keep what their formulas promise through a training?",
    protocol=(
        "Two hidden layers of 64 ReLU units on images, batches of 64, plain stochastic gradient descent. Weight "
        "normalization of every linear map against none, each at the one of the rates 0.03 to 1 that first gets 90 % "
        "of held-out images right; and at rate 0.1 the cosine between v and its gradient. Spectral normalization of "
        "every linear map against none at rate 0.1: the slope is the largest singular value of the network's Jacobian "
        "over 128 held-out images."
    ),
    claims=(
        Claim(
            "bound",
            "Spectral normalization of every layer keeps the network's Lipschitz constant at 1.",
            "Miyato et al., “Spectral Normalization for Generative Adversarial Networks” (2018), section 2.1; Sharma, "
            "“Batch and Layer Normalization” (2026), Other Normalization Variants",
            "largest slope of the trained network with spectral normalization",
            Rule(holds=1.05, reverses=2.0),
            unit="",
        ),
        Claim(
            "iterated",
            "It does with five power iterations in a step in place of the usual one.",
            "Miyato et al. (2018), appendix A: one was sufficient in their experiments",
            "largest slope of the trained network with spectral normalization, five iterations in a step",
            Rule(holds=1.05, reverses=2.0),
            unit="",
        ),
        Claim(
            "needed",
            "Training without it leaves that bound.",
            "Miyato et al. (2018), section 2.1",
            "largest slope of the trained network without",
            Rule(holds=2.0, reverses=1.0),
            unit="",
        ),
        Claim(
            "angle",
            "With weight normalization the gradient of v is at a right angle to v: length and direction are apart.",
            "Salimans & Kingma, “Weight Normalization” (2016), section 2.1 and equation 4",
            "cosine between v and its gradient, the largest over units and steps",
            Rule(holds=0.001, reverses=0.1),
            unit="",
        ),
        Claim(
            "faster",
            "Weight normalization makes stochastic gradient descent converge in fewer steps.",
            "Salimans & Kingma (2016), abstract",
            "steps to 90 % without, divided by steps with",
            Rule(holds=1.2, reverses=1 / 1.2),
        ),
    ),
    changes=(
        "One power iteration per step follows slow weights; at high rates the bound may be overstepped by what it "
        "lags. The bound is for the network's maps in evaluation mode and the 2-norm. Weight normalization is offered "
        "for deep, recurrent and generative networks, in which well-scaled starts are harder to come by than here."
    ),
    measure=measure,
    plots=(
        Plot("slope", "Largest slope over held-out images", "", "largest singular value", kind="bars"),
        Plot("length", "Mean length of v, beside its start", "step", "×"),
        Plot("accuracy", "Held-out accuracy, each at its best rate", "step", "held-out images right, %"),
    ),
)

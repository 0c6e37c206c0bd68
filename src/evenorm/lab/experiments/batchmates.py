"""Does a sample's output depend on the samples beside it?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, fit
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, stream, tensors

SIZES = (2, 4, 8, 16, 32)
LAYERS: dict[str, Layer] = {
    "none": identity,
    "batch": evenorm.BatchNorm1d,
    "layer": evenorm.LayerNorm,
    "group": lambda size: evenorm.GroupNorm(4, size),
    "rms": evenorm.RMSNorm,
}


def coupling(network: nn.Module, x: Tensor) -> float:
    """Return how much all other inputs move a sample's output, beside what its own input does.

    The root mean square over samples of the Jacobian's blocks ∂f(xᵢ)/∂xⱼ, j ≠ i summed, over ∂f(xᵢ)/∂xᵢ.
    """
    x = x.clone().requires_grad_()
    own, others = 0.0, 0.0
    for logits in network(x).T:
        for index, logit in enumerate(logits):
            (gradient,) = torch.autograd.grad(logit, x, retain_graph=True)
            squares = gradient.double().flatten(1).square().sum(1)
            own += float(squares[index])
            others += float(squares.sum() - squares[index])
    return (max(others, 0.0) / own) ** 0.5


def gradient_spread(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return how much one sample's gradient of all weights changes when its batch-mates do, relative to itself."""
    half = len(x) // 2
    gradients = []
    for mates in (slice(1, half), slice(half, 2 * half - 1)):
        batch = torch.cat([x[:1], x[mates]])
        loss = nn.functional.cross_entropy(network(batch)[:1], labels[:1])
        found = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
        gradients.append(torch.cat([gradient.flatten().double() for gradient in found]))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def measure(setting: Setting, seed: int) -> Observation:
    """Train a little, then differentiate each sample's output by every sample."""
    images = setting.images
    steps = setting.steps(quick=60, full=200, large=1000)
    chosen = np.random.default_rng(seed).permutation(len(images.test_labels))[: max(SIZES)]
    x, labels = tensors(images, images.test_pixels[chosen], images.test_labels[chosen])
    found = Observation()
    couplings: dict[str, list[float]] = {}
    spreads = {}
    for name, layer in LAYERS.items():
        network = perceptron(int(np.prod(images.shape)), (64, 64), len(images.classes), layer, seed=seed)
        fit(network, stream(images, Schedule(32, steps, 0.1, seed)), descent(0.1))
        couplings[name] = [coupling(network, x[:size]) for size in SIZES]
        spreads[name] = gradient_spread(network, x, labels)
        found.figures[f"change of one sample's gradient, {name}"] = spreads[name]
        if name == "batch":
            network.eval()
            couplings["batch, evaluation"] = [coupling(network, x[:size]) for size in SIZES]
    found.curves["coupling"] = {name: (SIZES, values) for name, values in couplings.items()}
    found.effects["couples"] = couplings["batch"][SIZES.index(16)]
    found.effects["gradient"] = spreads["batch"]
    rest = [values for name, values in couplings.items() if name != "batch"]
    found.effects["others"] = float(np.max(rest))
    return found


EXPERIMENT = Experiment(
    question="Does a sample's output depend on the samples beside it?",
    protocol=(
        "Two hidden layers of 64 ReLU units, trained for a little on images. The Jacobian of every sample's outputs by "
        "every sample's pixels, in training mode, and for batch normalization in evaluation mode too: the part that "
        "belongs to other samples, divided by the sample's own part. And how much the gradient that one sample gives "
        "to all weights changes when the fifteen beside it are replaced."
    ),
    claims=(
        Claim(
            "couples",
            "Batch normalization couples the samples of a batch.",
            "“Batch Normalization” (Concept 61), What Tutorials Skip; “Batch Normalization”, Common Misconceptions",
            "Jacobian by the other samples, divided by that by the own, in a batch of 16",
            Rule(holds=0.05, reverses=1e-4),
            unit="of the own",
        ),
        Claim(
            "gradient",
            "Each sample's gradient depends on its batch-mates.",
            "“Batch Normalization” (Concept 61), What Tutorials Skip",
            "change of one sample's gradient with other batch-mates, relative to the gradient",
            Rule(holds=0.05, reverses=1e-4),
            unit="of the gradient",
        ),
        Claim(
            "others",
            "Layer, group and RMS normalization, and batch normalization in evaluation, couple nothing.",
            "Sharma, “Batch and Layer Normalization” (2026), Advantages of Layer Normalization",
            "the greatest Jacobian by other samples, divided by that by the own, over batch sizes",
            Rule(holds=1e-6, reverses=0.05),
            unit="of the own",
        ),
    ),
    changes="The first grows with less samples in the batch. The last is exact: no formula there crosses samples.",
    measure=measure,
    plots=(
        Plot(
            "coupling", "What the other samples do to an output", "batch size", "beside the own input", logarithmic="x"
        ),
    ),
)

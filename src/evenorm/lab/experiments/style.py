"""Does instance normalization remove an image's contrast?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.data import Images
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import descent, falling, fit
from evenorm.lab.networks import build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, stream, tensors

# A style: contrast times this, and brightness plus that, in deviations of the training pixels.
CONTRAST, BRIGHTNESS = 0.3, 1.0
RATE = 0.1
BATCH = 32
# Images in a row of a picture, and rows.
SIDE = 3


def restyled(x: Tensor) -> Tensor:
    """The same images with less contrast, and brighter."""
    return CONTRAST * x + BRIGHTNESS


def shares(images: Tensor) -> list[list[float]]:
    """Return the first images as one square of gray values from 0 to 1; the first channel of each."""
    square = torch.cat([torch.cat(list(row), 1) for row in images[: SIDE**2, 0].split(SIDE)])
    low, high = float(square.min()), float(square.max())
    return [[(value - low) / max(high - low, 1e-12) for value in line] for line in square.tolist()]


def measure(setting: Setting, seed: int) -> Observation:
    """Normalize images in two styles, give one the other's statistics, and classify what changed style."""
    images = setting.images
    channels = images.shape[0]
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.test_labels), generator=draw)[:64].numpy()
    x, _ = tensors(images, images.test_pixels[chosen], images.test_labels[chosen])
    # Every other image has lost contrast, as in a batch of photographs of many hands.
    weak = torch.arange(len(x)) % 2 == 1
    mixed = torch.where(weak[:, None, None, None], restyled(x), x)
    layers: dict[str, nn.Module] = {
        "instance": evenorm.InstanceNorm2d(channels),
        "batch": evenorm.BatchNorm2d(channels, affine=False),
    }
    found = Observation()
    before = float((mixed - x)[weak].square().mean().sqrt() / x.std())
    pictures = {"as they are": x, "every other with less contrast, brighter": mixed}
    for name, layer in layers.items():
        original, changed = layer(x), layer(mixed)
        left = float((changed - original)[weak].square().mean().sqrt() / original.std()) / before
        found.effects[name] = 100 * left
        pictures[f"after {name} normalization"] = changed
    found.curves["pictures"] = {name: (shares(shown), []) for name, shown in pictures.items()}

    # Adaptive instance normalization: the first half gets mean and deviation of the second.
    content, style = x[:32], x[32:]
    deviation, mean = style.std((2, 3), correction=0), style.mean((2, 3))
    adaptive = evenorm.InstanceNorm2d(channels)(content, scale=deviation, shift=mean)
    off = (adaptive.std((2, 3), correction=0) - deviation).abs() + (adaptive.mean((2, 3)) - mean).abs()
    found.effects["adaptive"] = 100 * float((off / deviation).max())

    steps = setting.steps(quick=250, full=1200, large=10000)
    found.curves["accuracy"] = {}
    lost = {}
    for name in layers:
        network = build("cnn", images.shape, len(images.classes), NORMALIZERS[name], seed=seed)
        fit(network, stream(images, Schedule(BATCH, steps, RATE, seed)), descent(RATE), pace=falling(steps))
        right = [correct(network, images, restyle) for restyle in (False, True)]
        found.curves["accuracy"][name] = (["as trained", "less contrast, brighter"], right)
        lost[name] = right[0] - right[1]
    found.effects["classified"] = lost["batch"] - lost["instance"]
    return found


@torch.no_grad()
def correct(network: nn.Module, images: Images, restyle: bool) -> float:
    """Return the held-out images that are right in percent, in one of the two styles."""
    x, target = tensors(images, images.test_pixels, images.test_labels)
    guessed = network.eval()(restyled(x) if restyle else x).argmax(1)
    return 100 * float(np.mean((guessed == target).numpy()))


EXPERIMENT = Experiment(
    question="Does instance normalization remove an image's contrast?",
    protocol=(
        "64 held-out images, of which every other one gets 0.3 times its contrast and is brightened by one deviation; "
        "instance and batch normalization of the pixels. What is left of the change is the root mean square distance "
        "between the normalized images with and without it, beside the same before normalization, each in deviations. "
        "Adaptive instance normalization gives 32 images mean and deviation of 32 others. Then the lab's convolutional "
        "network, normalized by instance or by batch, learns the images as they are (batches of 32, plain stochastic "
        "gradient descent from rate 0.1 falling to zero) and is asked about held-out ones in both styles."
    ),
    claims=(
        Claim(
            "instance",
            "Instance normalization removes the contrast of each image.",
            "Ulyanov et al., “Instance Normalization: The Missing Ingredient for Fast Stylization” (2016), section 2; "
            "Sharma, “Batch and Layer Normalization” (2026), Other Normalization Variants",
            "share of a change of contrast and brightness that is left after it",
            Rule(holds=5.0, reverses=50.0),
            unit="%",
        ),
        Claim(
            "batch",
            "Batch normalization does not.",
            "Ulyanov et al. (2016), section 2 and equation 4",
            "share of the same change that is left after it",
            Rule(holds=50.0, reverses=5.0),
            unit="%",
        ),
        Claim(
            "adaptive",
            "With another image's deviation and mean as γ and β an image takes on its style statistics.",
            "Huang & Belongie, “Arbitrary Style Transfer in Real-Time with Adaptive Instance Normalization” (2017), "
            "equation 8",
            "distance of mean and deviation from the other image's, in its deviations, the greatest over images",
            Rule(holds=0.1, reverses=10.0),
            unit="%",
        ),
        Claim(
            "classified",
            "A network with instance normalization loses less when the contrast changes after training.",
            "what follows from it: Ulyanov et al. (2016), section 2",
            "points of accuracy lost to the change with batch normalization, minus those with instance normalization",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
    ),
    changes=(
        "Flat images: where an image hardly varies, ε is large beside its variance and contrast is not restored. Where "
        "contrast tells the classes apart, removing it does harm. In a network the first normalization comes after a "
        "convolution, whose padding brings the brightness back at the edges."
    ),
    measure=measure,
    plots=(
        Plot("pictures", "The same images before and after", kind="pictures"),
        Plot("accuracy", "Held-out accuracy by style", "", "held-out images right, %", kind="bars"),
    ),
)

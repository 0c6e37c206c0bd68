"""Which normalization serves a recurrent network on sequences of different lengths?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import evenorm
from evenorm.lab.data import Images
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.fit import Batch, adam, falling, fit
from evenorm.lab.networks import identity
from evenorm.lab.normalizers import Layer
from evenorm.lab.setting import Setting
from evenorm.lab.training import Schedule, batches, tensors

# An image is read in so many pieces; a sequence ends early, after half of them or later.
PIECES, SHORTEST = 16, 8
WIDTH, BATCH = 48, 32
RATE = 5e-3
LAYERS: dict[str, Layer] = {"none": identity, "batch": evenorm.BatchNorm1d, "layer": evenorm.LayerNorm}


class Recurrent(nn.Module):
    """An LSTM whose gates are normalized, both what comes in and what comes back; its last valid state is classified.

    Source:
        Ba et al., "Layer Normalization" (2016), equations 20 to 22; by batch: Cooijmans et al. (2017).
    """

    def __init__(self, inputs: int, classes: int, layer: Layer, seed: int) -> None:
        super().__init__()
        self.read, self.recall = nn.Linear(inputs, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.reading, self.recalling, self.telling = layer(4 * WIDTH), layer(4 * WIDTH), layer(WIDTH)
        self.head = nn.Linear(WIDTH, classes)
        draw = torch.Generator().manual_seed(seed)
        for linear in (self.read, self.recall, self.head):
            nn.init.normal_(linear.weight, 0.0, linear.in_features**-0.5, generator=draw)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Padded sequences (N, T, D), not a number beyond their ends, to (N, classes)."""
        lengths = x[:, :, 0].isfinite().sum(1)
        hidden = cell = x.new_zeros(len(x), WIDTH)
        last = hidden
        for time, piece in enumerate(x.nan_to_num(0.0).unbind(1)):
            gates = self.reading(self.read(piece)) + self.recalling(self.recall(hidden))
            forget, enter, leave, value = gates.chunk(4, 1)
            cell = (forget + 1).sigmoid() * cell + enter.sigmoid() * value.tanh()
            hidden = leave.sigmoid() * self.telling(cell).tanh()
            last = torch.where((lengths == time + 1)[:, None], hidden, last)
        return self.head(last)


def sequences(images: Images, x: Tensor, lengths: Tensor) -> Tensor:
    """Cut images into pieces (N, T, D), padded with not-a-number after each one's length."""
    flat = x.flatten(1)
    size = -(-flat.shape[1] // PIECES)
    padded = nn.functional.pad(flat, (0, PIECES * size - flat.shape[1]))
    beyond = torch.arange(PIECES) >= lengths[:, None]
    return padded.view(len(x), PIECES, size).masked_fill(beyond[:, :, None], torch.nan)


def measure(setting: Setting, seed: int) -> Observation:
    """Train each on sequences of mixed lengths, and ask for each length."""
    images = setting.images
    steps = setting.steps(quick=90, full=700, large=5000)
    draw = torch.Generator().manual_seed(seed)
    size = -(-int(np.prod(images.shape)) // PIECES)
    drawn: list[Batch] = []
    for index in batches(len(images.train_labels), Schedule(BATCH, steps, RATE, seed)):
        x, target = tensors(images, images.train_pixels[index], images.train_labels[index])
        lengths = torch.randint(SHORTEST, PIECES + 1, (len(x),), generator=draw)
        drawn.append((sequences(images, x, lengths), target))
    found = Observation(curves={"accuracy": {}, "loss": {}})
    mean, full, losses = {}, {}, {}
    for name, layer in LAYERS.items():
        torch.manual_seed(seed)
        network = Recurrent(size, len(images.classes), layer, seed)
        trace = fit(network, drawn, adam(RATE), pace=falling(steps))
        by_length = [right(network, images, length) for length in range(SHORTEST, PIECES + 1, 2)]
        found.curves["accuracy"][name] = (list(range(SHORTEST, PIECES + 1, 2)), by_length)
        found.curves["loss"][name] = (list(range(1, len(trace.losses) + 1)), trace.losses)
        mean[name], full[name], losses[name] = float(np.mean(by_length)), by_length[-1], trace.last_loss()
        found.figures |= {f"accuracy over lengths, {name}": mean[name], f"training loss, {name}": losses[name]}
    found.effects["layer"] = mean["layer"] - mean["batch"]
    found.effects["helps"] = mean["layer"] - mean["none"]
    found.effects["batch"] = mean["none"] - mean["batch"]
    return found


@torch.no_grad()
def right(network: nn.Module, images: Images, length: int) -> float:
    """Return the held-out images that are right in percent when all end after so many pieces."""
    x, target = tensors(images, images.test_pixels, images.test_labels)
    guessed = network.eval()(sequences(images, x, torch.full((len(x),), length))).argmax(1)
    return 100 * float((guessed == target).float().mean())


EXPERIMENT = Experiment(
    question="Which normalization serves a recurrent network on sequences of different lengths?",
    protocol=(
        "Images are read in 16 pieces, row by row, by an LSTM of 48 units, and each sequence ends at random after 8 to "
        "16 of them; what is asked for is the class, from the state after the last piece. What the gates get from the "
        "input, what they get from the state, and the cell's value before the output are normalized: not, by batch "
        "(over the batch at each time, one running average for all times, padding included, as a layer without a mask "
        "has it), or by layer. Batches of 32, Adam from 0.005 falling to zero, the same batches for all. Accuracy is "
        "the mean over held-out images that all end after 8, 10, … 16 pieces."
    ),
    claims=(
        Claim(
            "layer",
            "On sequences of different lengths layer normalization is better than batch normalization.",
            "“Batch normalisation” (Definition), Limitations: “doesn't work for sequence models where sequence length "
            "varies — use LayerNorm”; Sharma, “Batch and Layer Normalization” (2026), When to Use Each",
            "held-out accuracy with layer normalization, minus that with batch normalization",
            Rule(holds=5.0, reverses=-5.0),
            unit="points",
        ),
        Claim(
            "helps",
            "Layer normalization makes recurrent networks learn faster than none.",
            "Ba et al., “Layer Normalization” (2016), section 6",
            "held-out accuracy after the same steps with layer normalization, minus that without any",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
        Claim(
            "batch",
            "Batch statistics are problematic in recurrent networks: batch normalization is worse than none.",
            "Sharma (2026), Layer Normalization: An Alternative Approach; Laurent et al., “Batch Normalized Recurrent "
            "Neural Networks” (2016), who normalize the input's part alone",
            "held-out accuracy without any normalization, minus that with batch normalization",
            Rule(holds=2.0, reverses=-2.0),
            unit="points",
        ),
    ),
    changes=(
        "Running averages for each time step of their own and a small γ at the start (Cooijmans et al., “Recurrent "
        "Batch Normalization”, 2017) repair much of it, for lengths seen in training. A mask keeps the padding out of "
        "the statistics. Longer sequences give the state more time to drift."
    ),
    measure=measure,
    plots=(
        Plot("accuracy", "Held-out accuracy by length", "pieces before the end", "held-out images right, %"),
        Plot("loss", "Training loss", "step", "nats"),
    ),
)

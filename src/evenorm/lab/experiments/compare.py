"""Which normalization for these images? The comparison that `evenorm compare` makes, held against two claims."""

from __future__ import annotations

from statistics import median

from evenorm.lab.comparison.compare import Protocol, Task, perform
from evenorm.lab.experiment import Claim, Experiment, Observation, Plot, Rule
from evenorm.lab.setting import Setting

RIVALS = ("layer", "group", "instance", "rms")
MANY, FEW = 64, 4


def measure(setting: Setting, seed: int) -> Observation:
    """Perform the comparison's tasks of one seed: find each row's rate, then train at it."""
    quick = ("none", "batch", "layer", "group")
    rows = setting.pick(quick, Protocol().normalizers, Protocol().normalizers)
    # The length of a run at a batch of one image.
    protocol = Protocol(rows, (MANY, FEW), length=setting.steps(quick=300, full=512, large=2048))
    found = Observation()
    right: dict[str, dict[int, float]] = {}
    for name in rows:
        for size in protocol.batch_sizes:
            outcome = perform(setting.images, Task(name, size, seed), protocol)
            right.setdefault(name, {})[size] = 100 * outcome.run.accuracy
            found.figures |= {
                f"held-out accuracy, %, {name}, batches of {size}": 100 * outcome.run.accuracy,
                f"rate, {name}, batches of {size}": outcome.rate,
            }
    for size in protocol.batch_sizes:
        curves = found.curves.setdefault("accuracy", {})
        curves[f"batches of {size}"] = (list(rows), [right[name][size] for name in rows])
    rivals = [name for name in RIVALS if name in rows]
    found.effects["many"] = right["batch"][MANY] - median(right[name][MANY] for name in rivals)
    found.effects["few"] = max(right[name][FEW] for name in ("layer", "group")) - right["batch"][FEW]
    return found


EXPERIMENT = Experiment(
    question="Which normalization for these images?",
    protocol=(
        "The comparison of `evenorm compare`: a convolutional network of four layers, normalized before each ReLU, at "
        "batch sizes 64 and 4; each row at the rate whose trial ends with the lowest training loss. Accuracy on "
        "held-out images in evaluation mode."
    ),
    claims=(
        Claim(
            "many",
            "In a convolutional network with large batches batch normalization is the one to use.",
            "Sharma, “Batch and Layer Normalization” (2026), When to Use Each",
            f"held-out accuracy with it at batch size {MANY}, minus the median of the other normalizations of "
            "activations",
            Rule(holds=0.5, reverses=-0.5),
            unit="points",
        ),
        Claim(
            "few",
            "With small batches layer or group normalization is the one to use.",
            "“Batch normalisation”, Limitations; Sharma (2026), When to Use Each",
            f"the better accuracy of these two at batch size {FEW}, minus that of batch normalization",
            Rule(holds=0.5, reverses=-0.5),
            unit="points",
        ),
    ),
    changes="Other images: `evenorm compare --data DIR` makes the same comparison for them, with curves and advice.",
    measure=measure,
    plots=(Plot("accuracy", "Held-out accuracy", "", "images right, %", kind="bars"),),
)

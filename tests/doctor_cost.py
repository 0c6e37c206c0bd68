"""What examining ResNet-50 with one batch costs, as JSON; each figure in a process of its own.

``python doctor_cost.py passes`` counts the forward passes of the same time; ``examine``, ``step`` and ``forward`` give
the bytes that each adds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from evenorm.doctor import examine

SAMPLES = 8


def network() -> nn.Module:
    """Of transformers' default configuration."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    model: nn.Module = ResNetModel(ResNetConfig())
    return model


def batch() -> Tensor:
    return torch.randn(SAMPLES, 3, 224, 224)


def step(model: nn.Module, x: Tensor) -> None:
    """A training step with momentum, as such networks are trained."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    model(x).pooler_output.square().mean().backward()
    optimizer.step()


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def taken(call: Callable[[], object]) -> float:
    """Seconds of this process's processors: what else runs there does not count."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call adds to the most that this process has ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main(what: str) -> dict[str, float]:
    warnings.simplefilter("ignore")
    model, x = network(), batch()
    calls = {
        "examine": lambda: examine(model, x),
        "step": lambda: step(model, x),
        "forward": lambda: forward(model, x),
    }
    if what in calls:
        return {what: peak(calls[what])}
    forward(model, x)
    passes = min(taken(calls["forward"]) for _ in range(3))
    return {"passes": taken(calls["examine"]) / passes, "forward": passes}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")

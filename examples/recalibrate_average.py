"""Average the weights of a training, and give the average running statistics of its own.

    python examples/recalibrate_average.py

The running statistics of the last step belong to the last weights. Averaged weights see other activations, and evaluate
badly until their statistics are taken again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import evenorm


def network() -> nn.Sequential:
    """Three layers, normalized."""
    return nn.Sequential(
        nn.Linear(8, 64, bias=False),
        evenorm.BatchNorm1d(64, activation="relu"),
        nn.Linear(64, 64, bias=False),
        evenorm.BatchNorm1d(64, activation="relu"),
        nn.Linear(64, 1),
    )


def main(steps: int = 300) -> tuple[float, float]:
    """Train; return the average's loss with stale statistics and with its own."""
    torch.manual_seed(0)
    inputs = torch.randn(2048, 8)
    target = (inputs[:, :4] * inputs[:, 4:]).sum(1, keepdim=True)
    model = network()
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(steps):
        rows = torch.randint(len(inputs), (64,))
        loss = nn.functional.mse_loss(model(inputs[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps // 3:
            average.update_parameters(model)

    def loss_of(net: nn.Module) -> float:
        net.eval()
        with torch.no_grad():
            answer: Tensor = net(inputs)
            return nn.functional.mse_loss(answer, target).item()

    print(f"the last weights:                       loss {loss_of(model):.3f}")
    stale = loss_of(average)
    print(f"their average, statistics as copied:    loss {stale:.3f}")
    _, report = evenorm.recalibrate(average, inputs.split(256), report=True)
    own = loss_of(average)
    print(f"their average, statistics recalibrated: loss {own:.3f}")
    print(report)
    return stale, own


if __name__ == "__main__":
    main()

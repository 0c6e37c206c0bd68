"""Checks of the normalization in a project's own pytest suite.

    pytest examples/test_model.py

The fixture `assert_healthy` comes with the package; it fails with what the doctor found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import evenorm


def network() -> nn.Sequential:
    """What your project would import."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def test_model_is_healthy(assert_healthy: Callable[..., evenorm.Examination]) -> None:
    assert_healthy(network(), torch.randn(8, 3, 16, 16), warnings=True)


def test_optimizer_spares_the_normalizers(assert_healthy: Callable[..., evenorm.Examination]) -> None:
    model = network()
    optimizer = torch.optim.AdamW(evenorm.split_weight_decay(model, 0.05))
    assert_healthy(model, torch.randn(8, 3, 16, 16), optimizer=optimizer, warnings=True)


def test_training_loop_is_healthy() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with evenorm.Monitor(model, optimizer) as monitor:
        for _ in range(3):
            model(torch.randn(8, 3, 16, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.examination().ok

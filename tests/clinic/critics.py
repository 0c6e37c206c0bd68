"""Critics whose slope is penalized: EN410."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor


class Conditional(nn.Module):
    """A critic of an image and its class."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 64)
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), norm(16), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.head = nn.Linear(64, 1)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        planes = self.embedding(classes).view(-1, 1, 8, 8)
        return self.head(self.body(torch.cat([images, planes], 1)).flatten(1))


def watched(critic: nn.Module, penalty: float, *labels: Tensor) -> Examination:
    """Two steps of WGAN-GP with both batches in one pass each."""
    optimizer = torch.optim.Adam(critic.parameters(), 1e-4, betas=(0.0, 0.9))
    with Monitor(critic, optimizer) as monitor:
        for _ in range(2):
            real, made = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8)
            share = torch.rand(8, 1, 1, 1)
            between = (share * real + (1 - share) * made).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between, *labels).sum(), between, create_graph=True)
            held = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(made, *labels).mean() - critic(real, *labels).mean() + penalty * held
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return monitor.examination()


@pair("EN410", "kongyanye/cwgan-gp#6")
def a_conditional_critic(health: Health) -> Examination:
    norm = nn.BatchNorm2d if health == "ailing" else nn.InstanceNorm2d
    return watched(Conditional(norm), 10.0, torch.randint(4, (8,)))


@pair("EN410", "hwalsuklee/tensorflow-generative-model-collections#17")
def a_critic_of_dense_layers(health: Health) -> Examination:
    norm = nn.BatchNorm1d(128) if health == "ailing" else nn.LayerNorm(128)
    return watched(nn.Sequential(nn.Flatten(), nn.Linear(64, 128), norm, nn.LeakyReLU(0.2), nn.Linear(128, 1)), 0.25)

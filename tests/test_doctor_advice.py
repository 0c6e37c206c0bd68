"""Advice follows from what was measured, case by case."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import evenorm
from evenorm.doctor.advice import advise
from evenorm.doctor.examine import admit
from evenorm.doctor.handwritten import FrozenBatchNorm2d


def images(norm: nn.Module, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), norm, nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten())


def rows(width: int = 256) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))


def of_processes(per_process: int, processes: int) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(64, 4))
    sampler: Any = DistributedSampler(data, num_replicas=processes, rank=0)
    return DataLoader(data, per_process, sampler=sampler)


class Unrolled(nn.Module):
    """A cell by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.Linear(12, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in range(x.shape[1]):
            state = self.norm(self.cell(torch.cat([x[:, step], state], 1))).tanh()
        return state


class Listening(nn.Module):
    """A recurrent layer behind a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.memory = nn.BatchNorm1d(4), nn.GRU(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.memory(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]
        return y


class Attending(nn.Module):
    """Attention, and a batch norm over features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        z: Tensor = self.out(nn.functional.scaled_dot_product_attention(y, y, y))
        return z


class Padded(nn.Module):
    """Takes a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x) * mask[:, None]


MASK = torch.arange(9) < torch.tensor([9, 5, 3, 9])[:, None]
PIXELS, SMALL = torch.randn(8, 3, 12, 12), torch.randn(2, 3, 3, 3)
CASES: dict[str, tuple[nn.Module, Any, dict[str, Any], str, str, str]] = {
    "many values": (images(nn.BatchNorm2d(64)), PIXELS, {}, "batch norm", "800 values per channel", ""),
    "counted at the training's size": (
        *(images(nn.BatchNorm2d(64)), PIXELS, {"batch_size": 2}, "batch norm"),
        *("200 values per channel at 1 with a batch of 2: the scale is uncertain by 5%", ""),
    ),
    "online learning, vectors": (
        *(rows(), torch.randn(8, 4), {"batch_size": 1}, "layer norm"),
        *("online learning", "evenorm.LayerNorm(features)"),
    ),
    "online learning, images": (
        *(images(nn.BatchNorm2d(64)), PIXELS, {"batch_size": 1}, "group norm"),
        *("online learning", 'evenorm.convert(model, to="group")'),
    ),
    "four rows": (
        *(rows(), torch.randn(8, 4), {"batch_size": 4}, "layer norm"),
        *("uncertain by 35%; articles name 8, 16 and 32 as the least (the error by batch size: `evenorm lab run", ""),
    ),
    "sixteen rows": (
        *(rows(), torch.randn(8, 4), {"batch_size": 16}, "batch norm with care, or layer norm"),
        *("16 values per channel", "evenorm.LayerNorm(features)"),
    ),
    "few values of images": (
        *(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)), SMALL, {}, "group norm"),
        *("2 values per channel", 'evenorm.convert(model, to="group")'),
    ),
    "several processes": (
        *(rows(), None, {"loader": of_processes(8, 4)}, "synchronized batch norm"),
        *("8 values per channel on each of 4 processes", 'evenorm.convert(model, to="sync")'),
    ),
    "a recurrent layer": (
        Listening(),
        torch.randn(8, 20, 4),
        {},
        "layer norm",
        "GRU is recurrent",
        "evenorm.LayerNorm",
    ),
    "a cell by hand": (
        Unrolled(),
        torch.randn(8, 6, 4),
        {},
        "layer norm",
        "runs 6 times in a pass",
        "evenorm.LayerNorm",
    ),
    "attention": (Attending(), torch.randn(8, 20, 8), {}, "layer norm", "has attention", "evenorm.LayerNorm"),
    "torch's encoder": (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Attending()),
        *(torch.randn(8, 20, 8), {}, "layer norm", "has attention", "evenorm.LayerNorm"),
    ),
    "several lengths": (
        *(Padded(), {"x": torch.randn(4, 4, 9), "mask": MASK}, {}, "layer norm"),
        *("items have 3 to 9 positions", "evenorm.LayerNorm"),
    ),
    "a very small network": (
        *(images(nn.BatchNorm2d(8), 8), PIXELS, {}, "batch norm, or none"),
        *("a network of 824 parameters", "torch.nn.Identity()"),
    ),
    "frozen": (images(FrozenBatchNorm2d(64)), PIXELS, {}, "frozen batch norm", "frozen", ""),
    "group norm": (images(nn.GroupNorm(8, 64)), PIXELS, {}, "group norm", "800 values at 1 at the least", ""),
    "groups too small": (
        *(nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(32, 64)), SMALL, {}, "group norm of fewer groups"),
        *("2 values", "evenorm.GroupNorm(1, channels)"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_advice_has_its_numbers_and_its_line(name: str) -> None:
    model, batch, options, use, because, convert = CASES[name]
    found = [advice for advice in advise(admit(model, batch, **options)) if advice.use == use]
    assert found, advise(admit(model, batch, **options))
    assert because in found[0].because
    assert found[0].convert.startswith(convert)


def test_the_lines_do_what_they_say() -> None:
    model = images(nn.BatchNorm2d(64))
    for line in ('evenorm.convert(model, to="sync")', 'evenorm.convert(model, to="group")'):
        eval(line, {"evenorm": evenorm, "model": model})
    assert type(model[1]).__name__ == "GroupNorm"
    assert model(PIXELS).shape[0] == 8

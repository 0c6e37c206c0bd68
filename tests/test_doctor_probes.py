"""The probes measure what is there, and call noise noise."""

from pathlib import Path

import pytest
import torch
from torch import nn

import evenorm
from evenorm.doctor.handwritten import HandLayerNorm, HandRMSNorm
from evenorm.doctor.inputs import Inputs
from evenorm.doctor.probes.causality import leaks
from evenorm.doctor.probes.geometry import values_per_statistic
from evenorm.doctor.probes.offset import offsets
from evenorm.doctor.probes.padding import padding
from evenorm.doctor.probes.populations import difference
from evenorm.doctor.probes.precision import precision
from evenorm.doctor.sites import find_sites
from evenorm.doctor.subject import Subject
from ranks import run_ranks


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("norm", [HandRMSNorm, HandLayerNorm, nn.LayerNorm, nn.RMSNorm])
def test_eps_is_measured(norm: type[nn.Module], eps: float) -> None:
    seen = precision(Subject(norm(16, eps=eps)))[""]
    assert seen.eps == pytest.approx(eps, rel=0.02)
    assert seen.constant


def test_eps_of_a_batch_norm_is_measured() -> None:
    assert precision(Subject(nn.BatchNorm2d(8, eps=1e-4)))[""].eps == pytest.approx(1e-4, rel=0.02)


def test_half_precision_is_measured() -> None:
    wide, narrow = (precision(Subject(HandRMSNorm(16, dtype=d)))[""] for d in (torch.float32, None))
    assert wide.large_half < 1e-3
    assert narrow.large_half > 0.9
    assert wide.constant_half
    assert not precision(Subject(HandRMSNorm(16, eps=1e-12)))[""].constant_half


@pytest.mark.parametrize(
    ("norm", "offset"),
    [(HandRMSNorm(16), 0), (HandRMSNorm(16, offset=1.0), 1), (nn.LayerNorm(16), 0), (nn.BatchNorm2d(16), 0)],
)
def test_the_unit_offset_is_measured(norm: nn.Module, offset: int) -> None:
    assert offsets(Subject(norm)) == {"": offset}


def test_probes_leave_half_precision_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), HandRMSNorm(8)).half()
    find_sites(model)
    precision(Subject(model))
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_one_population_is_seldom_called_two() -> None:
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(300):
        # Channels and positions of one sample go together, as they do in images.
        x = torch.randn(16, 1, 1, 1, generator=generator) + torch.randn(16, 6, 4, 4, generator=generator)
        seen = difference(x[:8], x[8:])
        assert seen is not None
        false += seen.is_certain
    assert false <= 3


def test_two_populations_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 6, 4, 4, generator=generator), torch.randn(8, 6, 4, 4, generator=generator)
    for other in (y + 1, 3 * y):
        seen = difference(x, other)
        assert seen is not None
        assert seen.is_certain
    assert difference(x[:2], y[:2]) is None


def test_values_are_counted_at_the_batch_size_of_the_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    batch = Inputs.of(torch.randn(4, 3, 6, 6))
    assert values_per_statistic(Subject(model, batch)) == {"1": 64}
    assert values_per_statistic(Subject(model, batch, batch_size=2)) == {"1": 32}


def test_the_future_is_seen_along_the_axis_of_time_alone() -> None:
    """A layer norm over channels mixes channels, and that is no leak."""
    linear = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    assert leaks(Subject(linear, Inputs.of(torch.randn(2, 10, 6)))) == {}
    over_time = nn.Sequential(nn.Conv1d(6, 8, 1), nn.GroupNorm(2, 8), nn.Conv1d(8, 3, 1))
    assert list(leaks(Subject(over_time, Inputs.of(torch.randn(2, 6, 10))))) == ["1"]


def test_a_mask_that_is_passed_on_is_honored() -> None:
    class Encoder(nn.Module):
        def __init__(self, masked: bool) -> None:
            super().__init__()
            self.conv, self.norm, self.masked = nn.Conv1d(4, 6, 1), evenorm.BatchNorm1d(6), masked

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            y = self.norm(y, mask=mask) if self.masked else self.norm(y)
            return (y * mask[:, None]).sum(-1)

    mask = torch.arange(9)[None] < torch.tensor([9, 5, 3])[:, None]
    batch = Inputs.of((torch.randn(3, 4, 9), mask))
    assert padding(Subject(Encoder(masked=True), batch)) == {}
    assert list(padding(Subject(Encoder(masked=False), batch))) == ["norm"]


@pytest.mark.dist
def test_two_processes_agree_on_what_they_find() -> None:
    run_ranks(2, worker=Path(__file__).with_name("doctor_rank.py"))

"""One training run of the comparison, and that looking at it changes nothing."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import write_pair

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")

from evenorm.lab import workers
from evenorm.lab.data import Images, load
from evenorm.lab.networks import MODELS, PLACEMENTS, Model, Placement, build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.probes import SavedBytes
from evenorm.lab.training import Run, Schedule, predictions, train


@pytest.fixture
def images(tmp_path: Path) -> Images:
    write_pair(tmp_path, 60)
    return load(tmp_path)


APPLY = [
    (model, name, placement)
    for model in MODELS
    for name in NORMALIZERS
    for placement in PLACEMENTS
    if not NORMALIZERS[name].declines(model, 8)
]


@pytest.mark.parametrize(("model", "name", "placement"), APPLY)
def test_measuring_changes_no_bit(images: Images, model: Model, name: str, placement: Placement) -> None:
    def trained(measure: bool) -> tuple[dict[str, torch.Tensor], Run]:
        network = build(model, images.shape, 2, NORMALIZERS[name], placement, seed=1)
        run = train(network, images, Schedule(8, 6, 0.1, 1), measure)
        return network.state_dict(), run

    (plain, quiet), (probed, loud) = trained(False), trained(True)
    assert all(torch.equal(plain[key], probed[key]) for key in plain)
    assert quiet.losses == loud.losses
    assert len(loud.probed) == 6
    layers = [layer for layer, _ in build(model, images.shape, 2, NORMALIZERS[name], placement).hidden()]
    assert list(loud.activations) == layers
    assert list(loud.gradients) == [*layers, "output"]
    assert all(norm > 0 for norms in loud.gradients.values() for norm in norms[:1])
    assert loud.saved_bytes > 0


def test_rows_start_from_the_same_weights() -> None:
    starts = []
    for row in NORMALIZERS.values():
        weights = [block.linear.weight for _, block in build("cnn", (1, 8, 8), 10, row, seed=3).hidden()]
        # Spectral normalization divides them by their norm.
        starts.append(
            [torch.nn.functional.normalize(w.flatten(), dim=0) for w in weights if isinstance(w, torch.Tensor)]
        )
        assert len(starts[-1]) == 4
    for other in starts[1:]:
        for first, second in zip(starts[0], other, strict=True):
            torch.testing.assert_close(first, second)


def test_a_network_learns(images: Images) -> None:
    network = build("cnn", images.shape, 2, NORMALIZERS["batch"])
    run = train(network, images, Schedule(8, 40, 0.1, 0))
    assert run.accuracy == 1.0
    assert run.reached is not None
    assert 0 < run.reached < 40
    assert run.losses[-1] < 0.3 < run.losses[0]
    assert np.array_equal(predictions(network, images, images.test_pixels), images.test_labels)


def test_batch_statistics_make_a_gap_and_others_none(images: Images) -> None:
    def changed(name: str) -> float:
        network = build("mlp", images.shape, 2, NORMALIZERS[name])
        return train(network, images, Schedule(2, 2, 0.01, 0)).changed

    assert changed("batch") > 0
    assert changed("layer") == 0


def test_divergence_is_seen_and_ends_the_run(images: Images) -> None:
    network = build("mlp", images.shape, 2, NORMALIZERS["none"])
    run = train(network, images, Schedule(8, 50, 1e30, 0))
    assert run.diverged
    assert len(run.losses) < 50
    assert run.last_loss() == math.inf


def test_a_run_stops_when_asked(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("mlp", images.shape, 2, NORMALIZERS["none"])
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(workers, "_stop", stop)
    with pytest.raises(workers.Stopped):
        train(network, images, Schedule(8, 50, 0.1, 0))


def test_saved_bytes_counts_a_storage_once() -> None:
    x, weight = torch.ones(10, 10, requires_grad=True), torch.ones(10, 10, requires_grad=True)
    memory = SavedBytes()
    with memory.watching([weight]):
        y = x * weight
        assert (y @ weight + y.T @ weight).shape == (10, 10)
    # x for the product and y for both; the weight is apart.
    assert memory.total == 800

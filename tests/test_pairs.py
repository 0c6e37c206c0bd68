"""Every composition is its definition in the float64 reference; every other one is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import evenorm
from compositions import ALL, MOMENTUM, RENORM, UPDATES, VALUES, Composition, Part, steps
from evenorm import Accumulated, Affine, Batch, Cumulative, Frozen, Pattern, PerDomain, Renorm, Running, Synced
from evenorm.kernels import reference

PATTERN, AFFINE = Pattern.parse("[n] c [...]"), Affine("c")
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
# Where the micro-batches, or the ghost batches, of 7 samples begin and end.
PARTS = {"batch": [7], "exact": [3, 4, 7], "approximate": [3, 4, 7], "ghost": [3, 6, 7]}


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(torch.as_tensor(actual).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


class Moments:
    """The definition: of one part, or of all together."""

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        wide = mask[:, None].numpy()
        self.mean, self.m2 = reference.moments(x, PATTERN, mask=wide)
        self.count = reference.counts(PATTERN, tuple(x.shape), wide)

    def variance(self, biased: bool) -> NDArray[np.float64]:
        return self.m2 / np.maximum(self.count - (0 if biased else 1), 1)


def remembered(average: str, past: Pair, parts: list[Moments], whole: Moments) -> Pair:
    """The history after the parts: their means and variances weighted by their counts, blended with the past."""
    if average == "population":
        count, delta = VALUES + whole.count, whole.mean - past[0]
        m2 = past[1] * (VALUES - 1) + whole.m2 + delta**2 * VALUES * whole.count / count
        return past[0] + delta * whole.count / count, m2 / (count - 1)
    shares = [part.count / sum(p.count for p in parts) for part in parts]
    mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
    variance = sum(share * part.variance(average == "biased") for share, part in zip(shares, parts, strict=True))
    share = {"debiased": MOMENTUM / (1 - (1 - MOMENTUM) ** (UPDATES + 1)), "averaged": 1 / (UPDATES + 1)}.get(
        average, MOMENTUM
    )
    return past[0] + share * (mean - past[0]), past[1] + share * (variance - past[1])


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("composition", ALL, ids=str)
def test_every_composition_is_its_definition(composition: Composition, masked: bool) -> None:
    """Average × window × correction × domain × mask; tests/rank_statistics.py puts ranks under each."""
    layer = composition.layer(micro_batches=3)
    mine = 1 if composition.domain else ...
    before = [t.clone() for t in (layer.running_mean, layer.running_var)]
    past: Any = tuple(t[mine].numpy() for t in before)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    x, dy = (torch.randn(7, 3, 4, dtype=torch.float64) * 2 + 3 for _ in range(2))
    mask = torch.rand(7, 4) > 0.3 if masked else torch.ones(7, 4, dtype=torch.bool)
    ends = PARTS[composition.window]
    rows = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    given = Part(x, dy, mask if masked else None)
    calls = [given] if composition.window == "ghost" else [given.at(part) for part in rows]
    results = steps(composition, layer, calls)

    together = [slice(0, 7)] if composition.window in ("batch", "exact") else rows
    y, dx, parameters = [], [], []
    for part in together:
        options: dict[str, Any] = {"affine": AFFINE, "mask": mask[part][:, None].numpy()}
        if composition.renormed:
            batch = Moments(x[part], mask[part])
            bounds = (RENORM["r_max"], RENORM["d_max"])
            options["corrected"] = reference.correction(batch.mean, batch.variance(True), past, 1e-5, *bounds)
        y.append(reference.forward(x[part], PATTERN, weight, bias, **options))
        found = reference.backward(dy[part], x[part], PATTERN, weight, bias, **options)
        dx.append(found.x)
        parameters.append((found.weight, found.bias))
    close(torch.cat([step.y for step in results]), np.concatenate(y))
    close(torch.cat([step.dx for step in results]), np.concatenate(dx))
    close(layer.weight.grad, sum(w for w, _ in parameters))
    close(layer.bias.grad, sum(b for _, b in parameters))

    whole = Moments(x, mask)
    each = [Moments(x[part], mask[part]) for part in rows] if composition.window == "ghost" else [whole]
    mean, variance = remembered(composition.average, past, each, whole)
    close(layer.running_mean[mine], mean)
    close(layer.running_var[mine], variance)
    assert layer.num_batches_tracked[mine].item() == UPDATES + 1
    if composition.domain:
        assert torch.equal(layer.running_mean[0], before[0][0])
        assert torch.equal(layer.running_var[0], before[1][0])
        assert layer.num_batches_tracked[0].item() == UPDATES


INNER: dict[str, Any] = {
    "Batch": Batch(),
    "Running": Running(0.1),
    "Cumulative": Cumulative(),
    "Frozen": Frozen(),
    "Renorm": Renorm(),
    "Synced": Synced(),
    "Accumulated": Accumulated(2),
    "PerDomain": PerDomain(["a"]),
}
OUTER: dict[str, Any] = {
    "Renorm": lambda inner: Renorm(of=inner),
    "Synced": lambda inner: Synced(of=inner),
    "Accumulated": lambda inner: Accumulated(2, of=inner),
    "PerDomain": lambda inner: PerDomain({"a": inner}),
}
MEANINGLESS = {
    "Renorm": {"Batch", "Frozen", "Renorm", "PerDomain"},
    "Synced": {"Frozen", "Renorm", "Synced", "PerDomain"},
    "Accumulated": {"Frozen", "Renorm", "Accumulated", "PerDomain"},
    "PerDomain": {"PerDomain"},
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_every_pair_composes_or_is_refused_when_it_is_made(outer: str, inner: str) -> None:
    if inner in MEANINGLESS[outer]:
        with pytest.raises(ValueError, match=rf"{outer}\(of={inner}\(…\)\) means nothing: "):
            OUTER[outer](INNER[inner])
    else:
        statistics = OUTER[outer](INNER[inner])
        layer = evenorm.BatchNorm1d(3, statistics=statistics)
        assert repr(statistics) in repr(layer)
        assert str(statistics.on(Running(0.1))) in str(layer.recipe)


HISTORIES: dict[str, Any] = {
    "running": Running(0.1),
    "cumulative": Cumulative(),
    "frozen": Frozen(),
    "renorm": Renorm(),
    "domains": PerDomain(["a", "b"]),
    "synced average": Synced(of=Running(0.1)),
    "approximate window": Accumulated(2, "approximate"),
}


@pytest.mark.parametrize("statistics", HISTORIES.values(), ids=HISTORIES)
def test_without_running_statistics_what_needs_them_is_refused(statistics: Any) -> None:
    # A window means nothing to instance norm whatever it keeps.
    for make in (evenorm.BatchNorm1d, *([] if isinstance(statistics, Accumulated) else [evenorm.InstanceNorm1d])):
        with pytest.raises(ValueError, match=r"no running statistics for this to keep; make .*=True|no history"):
            make(3, track_running_stats=False, statistics=statistics)


@pytest.mark.parametrize("merged", [Synced(), Accumulated(2), Renorm(of=Synced()), PerDomain({"a": Synced()})], ids=str)
def test_what_a_pattern_gives_no_meaning_is_refused(merged: Any) -> None:
    with pytest.raises(ValueError, match=r"GhostBatchNorm1d: (Synced|Accumulated)\(…\) means nothing here: .*ghost"):
        evenorm.GhostBatchNorm1d(3, 2, statistics=merged)
    if isinstance(merged, Accumulated):
        with pytest.raises(ValueError, match=r"InstanceNorm1d: Accumulated\(…\) means nothing here: a sample has"):
            evenorm.InstanceNorm1d(3, track_running_stats=True, statistics=merged)

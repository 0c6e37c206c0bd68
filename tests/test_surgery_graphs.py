"""Random graphs: all that is foldable is folded, nothing else is, and the outputs stay."""

from __future__ import annotations

import pytest
import torch

from evenorm import fold
from evenorm.surgery.proof import Inputs, observe, prove
from graphs import SEGMENTS, random_graph

FAST, ALL = len(SEGMENTS), 10 * len(SEGMENTS)
SEEDS = [*range(FAST), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(FAST, ALL))]


def test_there_are_at_least_200() -> None:
    assert len(SEEDS) >= 200


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graph(seed: int) -> None:
    graph = random_graph(seed)
    before = {name: t.clone() for name, t in graph.model.state_dict().items()}
    folded, report = fold(graph.model, graph.input, inplace=False, report=True)

    assert {row.path for row in report.changed} == graph.foldable, str(report)
    assert {row.path for row in report.refused} == graph.others
    assert all(row.refusal for row in report.refused)
    assert all(row.proof is not None and row.proof.holds for row in report.changed)
    # On an input that the folding has not seen.
    inputs = Inputs((torch.randn(graph.input.shape).to(graph.input.dtype),))
    proof = prove(observe(graph.model, inputs), observe(folded, inputs), graph.model, inputs)
    assert proof.holds, proof
    # A wrong fold is off by the size of the output. Half precision may be, too; there fold() itself asks float32.
    if graph.input.dtype != torch.bfloat16:
        assert proof.bound * torch.finfo(graph.input.dtype).eps < 0.02

    assert before.keys() == graph.model.state_dict().keys()
    assert all(t.equal(before[name]) for name, t in graph.model.state_dict().items())

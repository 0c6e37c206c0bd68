"""Triton's kernels: every layer against the float64 reference, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, Case, case
from gpu import DEVICE, GPU, agrees, poison, shortly, shrink
from layouts import LAYOUTS

pytestmark = GPU

FUSED = [c for c in CASES if c.fused]
ALL = pytest.mark.parametrize("case", FUSED, ids=str)
# A case of each kind: where statistics and parameters lie, and in which order.
KINDS = (
    *(
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm2d_no_affine",
        "GhostBatchNorm1d",
        "InstanceNorm2d_tracked",
        "GroupNorm_2",
    ),
    *("LayerNorm", "LayerNorm_two_axes", "LayerNorm_given", "LayerNorm2d", "RMSNorm_offset", "GroupNorm_given"),
    *(
        "BatchNorm2d_given",
        "Norm_heads",
        "Norm_affine_order",
        "Norm_affine_kept",
        "Norm_alternating",
        "Norm_everything",
    ),
)
# Evaluation where it is another call: where a history normalizes.
MODES = [(c, mode) for c in FUSED for mode in ("train", "eval") if mode == "train" or c.layer().history is not None]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("case", shortly(FUSED, *KINDS), ids=str)
def test_training(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    agrees(case, torch.float32, "contiguous", training=True)


@pytest.mark.parametrize("name", shortly(["BatchNorm2d", "InstanceNorm2d_tracked", "Norm_frozen"], "BatchNorm2d"))
def test_evaluation(name: str) -> None:
    agrees(case(name), torch.float32, "contiguous", training=False)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("name", shortly(["RMSNorm_cast", "GroupNorm_2"], "RMSNorm_cast"))
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    agrees(case(name), dtype, "contiguous", training=True)


@pytest.mark.parametrize("name", shortly(["RMSNorm", "BatchNorm2d", "LayerNorm"], "RMSNorm"))
def test_float32_parameters_of_a_bfloat16_input(name: str) -> None:
    agrees(case(name), torch.bfloat16, "contiguous", training=True, mixed=True)


@pytest.mark.parametrize("layout", shortly(["channels_last", "sliced"], "channels_last"))
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm_2", "LayerNorm2d", "InstanceNorm3d"])
def test_layouts(name: str, layout: str) -> None:
    agrees(case(name), torch.float32, layout, training=True)


@pytest.mark.parametrize("layout", shortly(["contiguous", "channels_last"], "contiguous"))
@pytest.mark.parametrize(
    "name", shortly(["BatchNorm2d", "GroupNorm_2", "LayerNorm", "LayerNorm2d"], "BatchNorm2d", "LayerNorm")
)
def test_tiles_and_pieces(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors through the loops of large ones."""
    shrink(monkeypatch)
    poison(monkeypatch)
    agrees(case(name), torch.float32, layout, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "mode"), MODES, ids=str)
def test_everywhere(case: Case, mode: str, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    training = mode == "train"
    # In the interpreter, which takes a second for each, shapes take turns; a case has six at the most.
    turn = list(LAYOUTS).index(layout) + FLOATS.index(dtype) + training
    every = range(len(case.shapes))
    for seed in every if DEVICE == "cuda" else [every[turn % len(every)]]:
        agrees(case, dtype, layout, training, seed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@ALL
def test_everywhere_in_small_tiles(case: Case, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    poison(monkeypatch)
    agrees(case, torch.float32, layout, training=True)

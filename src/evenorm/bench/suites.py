"""The suites of layers alone, fused and by threads: shapes that networks give them at 224² pixels, and odd ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

from evenorm.bench.case import Case
from evenorm.bench.measure import Plan
from evenorm.bench.peers import ALONE, OURS, OURS_COMPILED, SEPARATE
from evenorm.bench.peers.threads import one
from evenorm.bench.row import LARGE
from evenorm.bench.scaling import SUITE as SCALING
from evenorm.epilogue import Place

__all__ = ["BEYOND", "CACHED", "FRESH", "REUSED", "SUITES", "plans", "quick"]

# Of a GPU torch keeps what was freed.
FRESH, REUSED, CACHED = "fresh", "reused", "cached"
SUITES = ("layers", "fused", SCALING)

# Reused memory is asked of tensors this large; smaller ones are never mapped anew.
_LARGE = 1_000_000

_LAYERS: tuple[tuple[str, str, Sequence[tuple[int, ...]]], ...] = (
    ("ResNet-50", "BatchNorm2d", ((16, 64, 112, 112), (16, 256, 56, 56), (16, 512, 28, 28), (16, 2048, 7, 7))),
    ("MobileNetV2", "BatchNorm2d", ((16, 96, 112, 112), (16, 144, 56, 56), (16, 576, 14, 14), (16, 1280, 7, 7))),
    ("EfficientNet-B0", "BatchNorm2d", ((16, 240, 28, 28), (16, 672, 14, 14), (16, 1152, 7, 7))),
    ("MLP", "BatchNorm1d", ((4096, 512), (256, 1024))),
    ("speech", "BatchNorm1d", ((32, 128, 1024),)),
    ("ConvNeXt-T", "LayerNorm2d", ((16, 96, 56, 56), (16, 384, 14, 14))),
    ("ConvNeXt-T", "LayerNorm", ((16, 56, 56, 96), (16, 14, 14, 384))),
    ("ViT-B", "LayerNorm", ((16, 197, 768),)),
    ("GPT-2", "LayerNorm", ((8, 1024, 768),)),
    ("GPT-2 decoding", "LayerNorm", ((1, 1, 768), (8, 1, 768))),
    ("Llama", "RMSNorm", ((1, 2048, 4096), (1, 1024, 8192))),
    ("Llama heads", "RMSNorm", ((1, 1024, 32, 128),)),
    ("Llama decoding", "RMSNorm", ((1, 1, 4096), (1, 1, 8192))),
    ("U-Net", "GroupNorm", ((2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16))),
    ("style transfer", "InstanceNorm2d", ((8, 64, 128, 128),)),
    ("one channel", "BatchNorm2d", ((64, 1, 28, 28),)),
    ("one pixel", "BatchNorm2d", ((256, 512, 1, 1),)),
    ("one image", "BatchNorm2d", ((1, 64, 56, 56),)),
    ("one image", "GroupNorm", ((1, 320, 32, 32),)),
    ("three features", "LayerNorm", ((100_000, 3),)),
    ("three features", "RMSNorm", ((100_000, 3),)),
    ("vocabulary", "LayerNorm", ((64, 50_257),)),
    ("vocabulary", "RMSNorm", ((64, 50_257),)),
    ("one long row", "LayerNorm", ((1, 50_257),)),
)

BEYOND = 64_000_000
"""Of tensors of more bytes a GPU's backward pass is measured by itself, beside a copy."""

# A GPU is given so many times the batch where it is to be filled.
_FILLING = 8

# Where torch leaves its fast path on a GPU, beside those above.
_OFF_PATH: tuple[tuple[str, str, tuple[int, ...], str | None, str | None], ...] = (
    ("Llama", "RMSNorm", (1, 2048, 4096), "float32", None),
    ("Llama heads", "RMSNorm", (1, 1024, 32, 128), "float32", None),
    ("ConvNeXt-T", "RMSNorm2d", (16, 96, 56, 56), None, None),
    ("3D U-Net", "InstanceNorm3d", (2, 32, 32, 64, 64), None, None),
    ("3D U-Net", "GroupNorm", (2, 64, 16, 64, 64), None, None),
    ("3D U-Net", "GroupNorm", (2, 64, 16, 64, 64), None, "silu"),
)

# Sequences of different lengths, the rest padded: a quarter.
_PADDED: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("padded speech", "BatchNorm1d", (32, 128, 1024)),
    ("padded speech", "InstanceNorm1d", (32, 128, 1024)),
)
_HIDDEN = 0.25

# Activation, and where a residual is added.
_FUSED: tuple[tuple[str, str, tuple[int, ...], str | None, Place | None], ...] = (
    ("ResNet-50", "BatchNorm2d", (16, 64, 112, 112), "relu", None),
    ("ResNet-50", "BatchNorm2d", (16, 256, 56, 56), "relu", "after"),
    ("ResNet-50", "BatchNorm2d", (16, 512, 28, 28), "relu", "after"),
    ("MobileNetV2", "BatchNorm2d", (16, 96, 112, 112), "relu6", None),
    ("MobileNetV2", "BatchNorm2d", (16, 576, 14, 14), "relu6", None),
    ("EfficientNet-B0", "BatchNorm2d", (16, 240, 28, 28), "silu", None),
    ("MobileNetV3", "BatchNorm2d", (16, 240, 28, 28), "hardswish", None),
    ("U-Net", "GroupNorm", (2, 320, 64, 64), "silu", None),
    ("U-Net", "GroupNorm", (2, 1280, 16, 16), "silu", None),
    ("GPT-2", "LayerNorm", (8, 1024, 768), None, "before"),
    ("Llama", "RMSNorm", (1, 2048, 4096), None, "before"),
)

# One of each layout that kernels know, large enough that all threads have work.
_SCALED: tuple[Case, ...] = (
    Case("ResNet-50", "BatchNorm2d", (16, 256, 56, 56)),
    Case("ResNet-50", "BatchNorm2d", (16, 256, 56, 56), channels_last=True),
    Case("MLP", "BatchNorm1d", (4096, 512)),
    Case("GPT-2", "LayerNorm", (8, 1024, 768)),
    Case("Llama", "RMSNorm", (1, 2048, 4096)),
    Case("U-Net", "GroupNorm", (2, 320, 64, 64)),
    Case("U-Net", "GroupNorm", (2, 320, 64, 64), channels_last=True),
)


def plans(suite: str, memory: Sequence[str], against: Sequence[str]) -> Iterator[Plan]:
    """What a suite measures, fresh memory first.

    Torch's layers are measured everywhere, JAX and onnxruntime in float32 and fresh memory. torch.compile takes
    seconds for each case: training in float32 and fresh memory, where the means are taken, and our layers compiled
    beside it on the first shape that a network gives them, in each memory format. Batch normalization's evaluation
    is measured on ResNet-50's and the MLP's shapes. On a GPU every case has every peer, large tensors a larger batch,
    and cases are added that torch has no fast kernel for.
    """
    if suite == SCALING:
        yield from _scaled(memory, against)
        return
    cases = _together(_layers() if suite == "layers" else _fused())
    inner = (ALONE, SEPARATE) if suite == "fused" else ()
    if FRESH in memory:
        compiled = set()
        for case in cases:
            peers, layer = _peers(case, against), (case.network, case.layer, case.channels_last)
            if "compile" in peers and layer not in compiled:
                compiled.add(layer)
                peers.append(OURS_COMPILED)
            yield Plan(suite, case, ("forward", "both"), FRESH, (OURS, *inner, *peers))
    if CACHED in memory:
        beside = (OURS_COMPILED,) if "compile" in against else ()
        for case in _together([*cases, *_off_path(suite)]):
            shape = case.shape
            if case.elements >= _LARGE:
                shape = (shape[0] * _FILLING, *shape[1:])
            filling = replace(case, shape=shape)
            directions = ("forward", "backward", "both") if filling.bytes > BEYOND else ("forward", "both")
            yield Plan(suite, filling, directions, CACHED, (OURS, *inner, *against, *beside))
    if REUSED in memory:
        for case in cases:
            if case.dtype == "float32" and case.training and case.elements >= _LARGE:
                torch = tuple(peer for peer in against if peer == "torch")
                yield Plan(suite, case, ("forward", "backward"), REUSED, (OURS, *inner, *torch))


def _scaled(memory: Sequence[str], against: Sequence[str]) -> Iterator[Plan]:
    """Ours and torch's, each on all threads and on one."""
    names = (OURS, *(peer for peer in against if peer == "torch"))
    variants = (*names, *map(one, names))
    for kind, second in ((FRESH, "both"), (REUSED, "backward")):
        if kind in memory:
            yield from (Plan(SCALING, case, ("forward", second), kind, variants) for case in _SCALED)


def _peers(case: Case, against: Sequence[str]) -> list[str]:
    if case.dtype != "float32":
        return [peer for peer in against if peer == "torch"]
    compiles = case.training and case.elements > LARGE
    return [peer for peer in against if peer != "compile" or compiles]


def quick(plan: Plan) -> Plan:
    """The same plan on a few values: a check of the benchmark and not of the library."""
    least = {"GroupNorm": 64}.get(plan.case.layer, 8)
    last = plan.case.layer in ("LayerNorm", "RMSNorm")
    shape = tuple(
        min(size, least if axis == 1 or (last and axis == len(plan.case.shape) - 1) else 4)
        for axis, size in enumerate(plan.case.shape)
    )
    return replace(plan, case=replace(plan.case, network="quick", shape=shape))


def _layers() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for network, layer, shapes in _LAYERS:
            for shape in shapes:
                yield from _formats(Case(network, layer, shape, dtype))
                if layer.startswith("BatchNorm") and network in ("ResNet-50", "MLP"):
                    yield from _formats(Case(network, layer, shape, dtype, training=False))


def _fused() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for network, layer, shape, activation, residual in _FUSED:
            yield from _formats(Case(network, layer, shape, dtype, activation=activation, residual=residual))


def _off_path(suite: str) -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for network, layer, shape, parameters, activation in _OFF_PATH:
            if parameters != dtype and (activation is not None) == (suite == "fused"):
                yield from _formats(Case(network, layer, shape, dtype, parameters=parameters, activation=activation))
        for network, layer, shape in _PADDED if suite == "layers" else ():
            yield Case(network, layer, shape, dtype, hidden=_HIDDEN)


def _together(cases: Iterable[Case]) -> list[Case]:
    """Cases of one title next to each other, in the order in which titles come."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.title, []).append(case)
    return [case for group in groups.values() for case in group]


def _formats(case: Case) -> Iterator[Case]:
    yield case
    has_pixels = case.layer.endswith(("2d", "3d")) or case.layer == "GroupNorm"
    # One channel or one pixel lies the same way in both.
    if has_pixels and case.shape[1] > 1 and prod(case.shape[2:]) > 1:
        yield replace(case, channels_last=True)

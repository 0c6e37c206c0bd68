"""The case table: every layer, what it is given, and what it should compute.

What a layer should compute is said here once more and not read from the layer, so a wrong recipe
shows up as wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

import evenorm
from case import Case, Shape
from evenorm import Affine, Cumulative, Frozen, Norm, Running
from evenorm.layers.layer import Layer

__all__ = ["CASES", "Case", "case"]


def batch_norm(name: str, make: Callable[[], Layer], *shapes: Shape, **more: object) -> Case:
    return Case(name, make, shapes, "[n] c [...]", **more)  # type: ignore[arg-type]


def instance_norm(name: str, make: Callable[[], Layer], *shapes: Shape, **more: object) -> Case:
    return Case(name, make, shapes, "n c [...]", **more)  # type: ignore[arg-type]


def group_norm(groups: int, make: Callable[[], Layer], *shapes: Shape, **more: object) -> Case:
    named = {"name": f"GroupNorm_{groups}", "affine": "g c", **more}
    return Case(make=make, shapes=shapes, pattern=f"n (g={groups} [c]) [...]", **named)  # type: ignore[arg-type]


def last_axis(name: str, make: Callable[[], Layer], *shapes: Shape, **more: object) -> Case:
    named = {"pattern": "... [d]", "affine": "d", **more}
    return Case(name, make, shapes, **named)  # type: ignore[arg-type]


# Every axis of another size; axes of 1; for a few layers several chunks of a kernel.
IMAGES = ((4, 6, 5, 3), (3, 6, 1, 4))
WIDE_IMAGES = (*IMAGES, (2, 6, 41, 43))
ROWS = ((4, 3, 12), (12,), (2, 2, 3, 2, 12))
WIDE = 4099

CASES: tuple[Case, ...] = (
    batch_norm(
        "BatchNorm1d",
        lambda: evenorm.BatchNorm1d(6),
        *((8, 6), (5, 6, 7), (2, 6), (700, 6)),
        twin=lambda: nn.BatchNorm1d(6),
    ),
    batch_norm("BatchNorm2d", lambda: evenorm.BatchNorm2d(6), *WIDE_IMAGES, twin=lambda: nn.BatchNorm2d(6)),
    batch_norm(
        "BatchNorm3d",
        lambda: evenorm.BatchNorm3d(6, eps=1e-3),
        *((3, 6, 2, 4, 5), (2, 6, 1, 1, 3)),
        twin=lambda: nn.BatchNorm3d(6, eps=1e-3),
    ),
    # One channel: statistics and parameters of size 1.
    batch_norm(
        "BatchNorm2d_one_channel",
        lambda: evenorm.BatchNorm2d(1),
        *((4, 1, 5, 3), (40, 1, 1, 1)),
        twin=lambda: nn.BatchNorm2d(1),
    ),
    batch_norm(
        "BatchNorm2d_no_affine",
        lambda: evenorm.BatchNorm2d(6, affine=False),
        *IMAGES,
        twin=lambda: nn.BatchNorm2d(6, affine=False),
    ),
    batch_norm(
        "BatchNorm2d_untracked",
        lambda: evenorm.BatchNorm2d(6, track_running_stats=False),
        *IMAGES,
        twin=lambda: nn.BatchNorm2d(6, track_running_stats=False),
    ),
    batch_norm(
        "BatchNorm2d_cumulative",
        lambda: evenorm.BatchNorm2d(6, momentum=None),
        *IMAGES,
        twin=lambda: nn.BatchNorm2d(6, momentum=None),
        momentum=None,
    ),
    batch_norm(
        "BatchNorm2d_decay",
        lambda: evenorm.BatchNorm2d(6, decay=0.75),
        *IMAGES,
        twin=lambda: nn.BatchNorm2d(6, momentum=0.25),
        momentum=0.25,
    ),
    # 10 = 4 + 4 + 2; fewer samples than a chunk.
    batch_norm(
        "GhostBatchNorm1d",
        lambda: evenorm.GhostBatchNorm1d(6, 4),
        *((10, 6), (10, 6, 5), (3, 6)),
        chunk=4,
    ),
    batch_norm("GhostBatchNorm2d", lambda: evenorm.GhostBatchNorm2d(6, 2), *WIDE_IMAGES, (6, 6, 2, 2), chunk=2),
    batch_norm(
        "GhostBatchNorm3d",
        lambda: evenorm.GhostBatchNorm3d(6, 2, momentum=None, affine=False),
        *((5, 6, 2, 3, 4), (4, 6, 2, 1, 3)),
        chunk=2,
        momentum=None,
    ),
    instance_norm(
        "InstanceNorm1d",
        lambda: evenorm.InstanceNorm1d(6),
        *((4, 6, 5), (1, 6, WIDE)),
        twin=lambda: nn.InstanceNorm1d(6),
    ),
    instance_norm(
        "InstanceNorm2d_affine",
        lambda: evenorm.InstanceNorm2d(6, affine=True),
        *WIDE_IMAGES,
        twin=lambda: nn.InstanceNorm2d(6, affine=True),
    ),
    instance_norm(
        "InstanceNorm2d_tracked",
        lambda: evenorm.InstanceNorm2d(6, affine=True, track_running_stats=True),
        *IMAGES,
        twin=lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    ),
    instance_norm(
        "InstanceNorm3d",
        lambda: evenorm.InstanceNorm3d(6),
        *((3, 6, 2, 4, 5), (2, 6, 1, 1, 3)),
        twin=lambda: nn.InstanceNorm3d(6),
    ),
    # No twin: torch takes momentum=None for 0 here, and its history never moves.
    instance_norm(
        "InstanceNorm1d_cumulative",
        lambda: evenorm.InstanceNorm1d(6, momentum=None, track_running_stats=True),
        *((4, 6, 5), (1, 6, 8)),
        momentum=None,
    ),
    # One group, some groups, a group per channel.
    group_norm(1, lambda: evenorm.GroupNorm(1, 6), *IMAGES, twin=lambda: nn.GroupNorm(1, 6)),
    group_norm(
        2,
        lambda: evenorm.GroupNorm(2, 6),
        *WIDE_IMAGES,
        *((5, 6), (2, 6, 3), (2, 6, 2, 3, 2)),
        twin=lambda: nn.GroupNorm(2, 6),
    ),
    group_norm(6, lambda: evenorm.GroupNorm(6, 6), *IMAGES, twin=lambda: nn.GroupNorm(6, 6)),
    group_norm(
        3,
        lambda: evenorm.GroupNorm(3, 6, affine=False),
        *IMAGES,
        name="GroupNorm_no_affine",
        twin=lambda: nn.GroupNorm(3, 6, affine=False),
    ),
    last_axis("LayerNorm", lambda: evenorm.LayerNorm(12), *ROWS, twin=lambda: nn.LayerNorm(12)),
    last_axis(
        "LayerNorm_wide",
        lambda: evenorm.LayerNorm(WIDE, bias=False),
        (3, WIDE),
        twin=lambda: nn.LayerNorm(WIDE, bias=False),
    ),
    last_axis(
        "LayerNorm_two_axes",
        lambda: evenorm.LayerNorm((3, 4)),
        *((5, 2, 3, 4), (3, 4)),
        twin=lambda: nn.LayerNorm((3, 4)),
        pattern="... [h w]",
        affine="h w",
    ),
    last_axis(
        "LayerNorm_no_affine",
        lambda: evenorm.LayerNorm(12, elementwise_affine=False, eps=0.1),
        *ROWS,
        twin=lambda: nn.LayerNorm(12, elementwise_affine=False, eps=0.1),
    ),
    last_axis(
        "RMSNorm",
        lambda: evenorm.RMSNorm(12),
        *ROWS,
        twin=lambda: nn.RMSNorm(12),
        centered=False,
    ),
    last_axis(
        "RMSNorm_wide",
        lambda: evenorm.RMSNorm(WIDE, eps=1e-6, elementwise_affine=False),
        (3, WIDE),
        twin=lambda: nn.RMSNorm(WIDE, eps=1e-6, elementwise_affine=False),
        centered=False,
    ),
    # Gemma's 1 + weight and Llama's cast before scale.
    last_axis(
        "RMSNorm_offset",
        lambda: evenorm.RMSNorm(12, eps=1e-6, weight_offset=1.0),
        *ROWS,
        centered=False,
        offset=1.0,
    ),
    last_axis(
        "RMSNorm_cast",
        lambda: evenorm.RMSNorm(12, eps=1e-6, cast="before"),
        *ROWS,
        centered=False,
        cast="before",
    ),
    Case("LayerNorm2d", lambda: evenorm.LayerNorm2d(6), WIDE_IMAGES, "n [c] h w"),
    Case("RMSNorm2d", lambda: evenorm.RMSNorm2d(6), IMAGES, "n [c] h w", centered=False),
    # Given at the call, per sample: adaptive layer norm, conditional batch norm, AdaIN.
    last_axis(
        "LayerNorm_given",
        lambda: evenorm.LayerNorm(12, elementwise_affine=False),
        *((4, 3, 12), (2, 7, 12)),
        pattern="n t [d]",
        given="n d",
    ),
    last_axis(
        "LayerNorm_given_broadcast",
        lambda: evenorm.LayerNorm(12, elementwise_affine=False),
        (4, 3, 12),
        pattern="n t [d]",
        given="n d",
        given_as=lambda shape: (shape[0], 1, shape[2]),
    ),
    last_axis(
        "RMSNorm_given",
        lambda: evenorm.RMSNorm(12, eps=1e-6, elementwise_affine=False, weight_offset=1.0),
        (4, 3, 12),
        pattern="n t [d]",
        given="n d",
        centered=False,
        offset=1.0,
        shifted=False,
    ),
    batch_norm(
        "BatchNorm2d_given",
        lambda: evenorm.BatchNorm2d(6, affine=False),
        *IMAGES,
        given="n c",
    ),
    instance_norm(
        "InstanceNorm2d_given",
        lambda: evenorm.InstanceNorm2d(6),
        *IMAGES,
        given="n c",
        given_as=lambda shape: (shape[0], shape[1], 1, 1),
    ),
    group_norm(
        2,
        lambda: evenorm.GroupNorm(2, 6, affine=False),
        *IMAGES,
        name="GroupNorm_given",
        given="n g c",
        given_as=lambda shape: (shape[0], shape[1]),
    ),
    batch_norm(
        "GhostBatchNorm2d_given",
        lambda: evenorm.GhostBatchNorm2d(6, 2, affine=False),
        *((4, 6, 5, 3), (5, 6, 5, 3)),
        chunk=2,
        given="n c",
    ),
    # Any pattern. Sequences that keep channels last; QK norm with a weight per head.
    batch_norm(
        "Norm_batch",
        lambda: Norm("[n] c [...]", c=6, statistics=Running(0.1)),
        *IMAGES,
        twin=lambda: nn.BatchNorm2d(6),
    ),
    Case(
        "Norm_sequence",
        lambda: Norm("[n l] c", c=6, statistics=Cumulative("unbiased")),
        ((4, 5, 6), (2, 300, 6)),
        "[n l] c",
        remembered="[n l] c",
        momentum=None,
    ),
    instance_norm(
        "Norm_instance",
        lambda: Norm("n c [...]", c=6, statistics=Running(decay=0.5), bias=False),
        *IMAGES,
        momentum=0.5,
    ),
    Case(
        "Norm_ghost",
        lambda: Norm("(k [n=2]) c [...]", affine="c", c=6, statistics=Running(0.1)),
        ((4, 6, 5, 3), (6, 6, 2)),
        "(k [n=2]) c [...]",
    ),
    Case(
        "Norm_frozen",
        lambda: Norm("[n] c [...]", c=6, statistics=Frozen()),
        IMAGES,
        "[n] c [...]",
        frozen=True,
    ),
    Case(
        "Norm_heads",
        lambda: Norm("b t h [d]", centered=False, eps=None, affine="h d", h=3, d=8),
        ((2, 5, 3, 8),),
        "b t h [d]",
        "h d",
        centered=False,
    ),
    Case(
        "Norm_offset",
        lambda: Norm("n [c] [...]", affine=Affine("c", offset=1.0), c=6),
        IMAGES,
        "n [c] [...]",
        offset=1.0,
    ),
    # The affine against the order of memory, and on an axis that is not the normalized one.
    Case(
        "Norm_affine_order",
        lambda: Norm("n [c] [h] w", affine="h c", h=5, c=6),
        ((4, 6, 5, 3),),
        "n [c] [h] w",
        "h c",
    ),
    Case(
        "Norm_affine_kept",
        lambda: Norm("n (g [c]) [l]", affine="g", g=3, c=2),
        ((4, 6, 5),),
        "n (g=3 [c]) [l]",
        "g",
    ),
    Case(
        "Norm_split_inside",
        lambda: Norm("n ([g] c) [l]", g=3, c=2),
        ((4, 6, 5),),
        "n ([g=3] c) [l]",
        "g c",
    ),
    # More levels than a plan has: the first fits once permuted, the second never.
    Case(
        "Norm_alternating",
        lambda: Norm("[n] c [h] w", affine="c", c=6),
        ((4, 6, 5, 3),),
        "[n] c [h] w",
    ),
    Case(
        "Norm_unplannable",
        lambda: Norm("n ([g] c) ([k] l)", affine="c", g=3, c=2, k=2),
        ((4, 6, 10),),
        "n ([g=3] c) ([k=2] l)",
        fused=False,
    ),
    Case("Norm_everything", lambda: Norm("[...]", affine=None), ((4, 6, 5), (7,)), "[...]", ""),
)


def case(name: str) -> Case:
    """The case of that name."""
    return next(c for c in CASES if c.name == name)

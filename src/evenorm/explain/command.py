"""The command `evenorm explain`: from its arguments to a page of text and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from evenorm.explain import explain
from evenorm.explain.sizing import layer_named
from evenorm.kernels import KernelError
from evenorm.layers import Layer

__all__ = ["run"]

WRONG_ARGUMENTS = 2


def run(
    *,
    normalizer: str,
    shape: str,
    dtype: str,
    channels_last: bool,
    device: str,
    evaluation: bool,
    sizes: Sequence[str],
    affine: str,
    groups: int,
    virtual_batch_size: int,
    kernel: str | None,
    as_json: bool,
) -> int:
    """Explain, or say on the error stream what is wrong with the arguments."""
    try:
        axes = tuple(_number("--shape", size) for size in shape.split(",") if shape.strip())
        what: Layer | str = normalizer
        # A pattern has brackets, a name has none.
        if normalizer.isidentifier():
            what = layer_named(normalizer, axes, groups=groups, virtual_batch_size=virtual_batch_size)
            what.train(not evaluation)
        found = explain(
            what,
            axes,
            dtype=_dtype(dtype),
            channels_last=channels_last,
            device=device,
            affine=affine,
            kernel=kernel,
            mask=None,
            **dict(_size(size) for size in sizes),
        )
    except (ValueError, TypeError, KernelError) as fault:
        sys.stderr.write(f"{fault}\n")
        return WRONG_ARGUMENTS
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        Console().print(found)
    return 0


def _number(option: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{option}: expected whole numbers, for example 8,64,56,56; got {text!r}")
    return int(text)


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name.isidentifier():
        raise ValueError(f"--size: expected an axis and its size, for example g=8; got {text!r}")
    return name, _number("--size", size)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype: expected float32, float64, bfloat16 or float16, got {name!r}")
    return dtype

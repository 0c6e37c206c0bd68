"""A cache that compilers do not trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["cached"]

P = ParamSpec("P")
R = TypeVar("R")


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """Remember the results of a function of hashable arguments.

    Dynamo looks through ``lru_cache`` and warns of each; while it traces, the bare function is called.
    """
    remembered = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        called: Any = function if torch.compiler.is_compiling() else remembered
        return called(*args, **kwargs)

    return call

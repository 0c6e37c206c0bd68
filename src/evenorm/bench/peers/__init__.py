"""The variants of a case: ours, and what it is measured against.

Every variant gets the same input tensor, cotangent and parameters, and is called from Python as its users
call it: torch's and ours as a module, JAX through ``jit``, onnxruntime through a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evenorm.bench.case import Case, Data

__all__ = [
    "ALONE",
    "OURS",
    "OURS_COMPILED",
    "PEERS",
    "SEPARATE",
    "Outputs",
    "Unavailable",
    "Variant",
    "build",
    "missing",
]

OURS, OURS_COMPILED = "evenorm", "evenorm compiled"

ALONE, SEPARATE = "norm alone", "separate"
"""Our layer without what is fused with it, and with torch's addition and activation after it."""

Outputs = Mapping[str, "Tensor | NDArray[np.float32]"]
"""y, dx, dweight, dbias, dresidual by name, the tensors in the order of axes of the case's shape."""


class Unavailable(Exception):
    """A variant does not offer a case or a pass; the message says why."""


class Variant(Protocol):
    """One way to compute a case."""

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed: ``"forward"``, ``"backward"`` or ``"both"``."""

    def outputs(self) -> Outputs:
        """What is compared with the reference."""


# Name → the package that it needs.
PEERS = {"torch": "torch", "compile": "torch", "jax": "jax", "onnxruntime": "onnxruntime"}


def missing(peer: str) -> str | None:
    """Why a peer cannot be measured here, or ``None``."""
    package = PEERS[peer]
    return None if find_spec(package) else f"{package} is not installed: pip install 'evenorm[bench]'"


def build(name: str, case: Case, data: Data) -> Variant:
    """A variant by its name.

    Raises:
        Unavailable: it does not offer the case.
    """
    from evenorm.bench.peers import module, threads

    if (whole := threads.many(name)) is not None:
        return threads.Single(build(whole, case, data))
    if name in module.VARIANTS:
        return module.VARIANTS[name](case, data)
    if name == "jax":
        from evenorm.bench.peers.jax import Jitted

        return Jitted(case, data)
    from evenorm.bench.peers.onnxruntime import Session

    return Session(case, data)

"""The kernels, in the order in which they are asked, and the choice among them.

A kernel is a module with a ``name``, four verbs and the fused forward. ``declines(...)`` says why it cannot
take a call, or ``None``. The first that does not decline is taken; the choice never depends on the number of
rows, so a row's result does not depend on its neighbors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from evenorm.affine import Affine
from evenorm.kernels import cpu, eager
from evenorm.kernels.signature import Signature
from evenorm.pattern import Pattern

__all__ = [
    "KERNELS",
    "Candidate",
    "Kernel",
    "KernelError",
    "backward",
    "candidates",
    "choose",
    "exporting",
    "must_compose",
    "transforming",
]


class KernelError(RuntimeError):
    """A kernel was asked for by name and cannot take the call."""


class Kernel(Protocol):
    """What a kernel module offers. Statistics lie on the pattern's kept axes, in its order."""

    name: str

    def declines(self, signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
        """Why this kernel cannot take the call, or ``None``."""

    def moments(self, x: Tensor, pattern: Pattern, centered: bool) -> tuple[Tensor, Tensor]:
        """Mean and M2 of each group."""

    def apply(
        self,
        x: Tensor,
        pattern: Pattern,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        affine: Affine,
    ) -> Tensor:
        """y = (x − mean) · rstd · (offset + weight) + bias."""

    def grad_sums(
        self,
        dy: Tensor,
        x: Tensor,
        pattern: Pattern,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        affine: Affine,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Σ γ·dy and Σ γ·dy·x̂ of each group; Σ dy·x̂ and Σ dy of each parameter."""

    def grad_input(
        self,
        dy: Tensor,
        x: Tensor,
        pattern: Pattern,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        affine: Affine,
        c1: Tensor | None,
        c2: Tensor | None,
    ) -> Tensor:
        """dx = rstd · (γ·dy − c1 − x̂·c2)."""

    def forward(
        self,
        x: Tensor,
        pattern: Pattern,
        centered: bool,
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        affine: Affine,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments, then apply, with the statistics of this batch: y, mean, M2."""


KERNELS: tuple[Kernel, ...] = (cpu, eager)


class Candidate(NamedTuple):
    """A kernel's answer to one call."""

    name: str
    reason: str | None


def candidates(x: Tensor, pattern: Pattern, affine: Affine) -> list[Candidate]:
    """What every kernel answers to this call, in the order in which they are asked."""
    signature = Signature.of(x)
    return [Candidate(kernel.name, kernel.declines(signature, pattern, affine)) for kernel in KERNELS]


def choose(x: Tensor, pattern: Pattern, affine: Affine, name: str | None = None) -> Kernel:
    """The first kernel that takes the call, or the named one.

    Raises:
        KernelError: the named kernel is unknown or declines.
    """
    return _choose(Signature.of(x), pattern, affine, name)


@lru_cache(maxsize=4096)
def _choose(signature: Signature, pattern: Pattern, affine: Affine, name: str | None) -> Kernel:
    for kernel in KERNELS:
        if name is None:
            if kernel.declines(signature, pattern, affine) is None:
                return kernel
        elif kernel.name == name:
            reason = kernel.declines(signature, pattern, affine)
            if reason is not None:
                raise KernelError(f"kernel {name!r} cannot take this call: {reason}; leave kernel=None to let another")
            return kernel
    raise KernelError(f"there is no kernel {name!r}; choose among {', '.join(k.name for k in KERNELS)}")


def exporting() -> bool:
    """Whether a graph is being made for other runtimes."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def transforming() -> bool:
    """Whether a torch.func transform is active."""
    # The type is asked and not the value: a compiler's trace knows this form alone.
    return isinstance(torch._C._functorch.peek_interpreter_stack(), torch._C._functorch.CInterpreter)


def must_compose(*tensors: Tensor | None) -> str | None:
    """Why a call must be made of plain torch operations, or ``None``.

    A fused kernel reads memory behind torch's back, so whatever watches operations would miss it.
    """
    if exporting():
        return "an exported graph holds torch's own operations"
    if transforming():
        return "a torch.func transform is active"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode is active"
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        return "forward-mode derivatives are asked for"
    for t in tensors:
        if t is not None and type(t) not in (Tensor, torch.nn.Parameter):
            return f"{type(t).__name__} is a tensor subclass"
    return None


def backward(
    kernel: Kernel,
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    centered: bool,
    eps: float,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    affine: Affine,
    *,
    given: bool,
    needs_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """dx, Σ dy·x̂ and Σ dy: fused where the kernel can, else from the verbs.

    Args:
        spread: the variance where statistics are ``given``, which carry no gradient; M2 of the batch otherwise.
    """
    fused = getattr(kernel, "backward", None)
    if fused is not None and needs_input and not given:
        return fused(dy, x, pattern, centered, eps, mean, spread, weight, affine)
    count = x.numel() // max(mean.numel(), 1)
    mean, rstd = eager.statistics(x, mean, spread if given else spread / count, eps)
    s1, s2, d_weight, d_bias = kernel.grad_sums(dy, x, pattern, mean, rstd, weight, affine)
    if not needs_input:
        return None, d_weight, d_bias
    c1 = None if given or not centered else s1 / count
    c2 = None if given else s2 / count
    return kernel.grad_input(dy, x, pattern, mean, rstd, weight, affine, c1, c2), d_weight, d_bias

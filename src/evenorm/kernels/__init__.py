"""The kernels, in the order in which they are asked, and the choice among them.

A kernel is a module with a ``name``, four verbs and the fused forward. ``declines(...)`` says why it cannot
take a call, or ``None``. The first that does not decline is taken; the choice never depends on the number of
rows, so a row's result does not depend on its neighbors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from evenorm.affine import Affine
from evenorm.kernels import aten, cpu, eager, triton
from evenorm.kernels import mask as masks
from evenorm.kernels.finish import Finish
from evenorm.kernels.operands import dense_strides
from evenorm.kernels.signature import Signature
from evenorm.pattern import Pattern

__all__ = [
    "KERNELS",
    "Candidate",
    "Finish",
    "Gradients",
    "Kernel",
    "KernelError",
    "Signature",
    "backward",
    "candidates",
    "choice",
    "choose",
    "exporting",
    "forward_of_sum",
    "must_compose",
    "transforming",
]


_PLAIN = (Tensor, torch.nn.Parameter)


class KernelError(RuntimeError):
    """A kernel was asked for by name and cannot take the call."""


class Kernel(Protocol):
    """What a kernel module offers. Statistics lie on the pattern's kept axes, in its order.

    A mask has the input's axes, each whole or of size 1; True is valid. What it hides is never read as a number, adds
    to no sum, and comes out as zero: in y, in dx and in the residual's gradient.
    """

    name: str

    def declines(self, signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
        """Why this kernel cannot take the call, or ``None``."""

    def moments(self, x: Tensor, pattern: Pattern, centered: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and M2 of each group; zeros where it has no valid element."""

    def apply(
        self, x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
    ) -> Tensor:
        """y = activation((x − mean) · rstd · (offset + weight) + bias + residual)."""

    def grad_sums(
        self,
        dy: Tensor,
        x: Tensor,
        pattern: Pattern,
        mean: Tensor,
        rstd: Tensor,
        finish: Finish,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """With dz = dy · activation'(z): Σ γ·dz and Σ γ·dz·x̂ of each group; Σ dz·x̂ and Σ dz of each parameter."""

    def grad_input(
        self,
        dy: Tensor,
        x: Tensor,
        pattern: Pattern,
        mean: Tensor,
        rstd: Tensor,
        finish: Finish,
        c1: Tensor | None,
        c2: Tensor | None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """dx = rstd · (γ·dz − c1 − x̂·c2), and dz where there is a residual."""

    def forward(
        self, x: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments, then apply, with the statistics of this batch: y, mean, M2."""


KERNELS: tuple[Kernel, ...] = (cpu, triton, aten, eager)


class Candidate(NamedTuple):
    """A kernel's answer to one call."""

    name: str
    reason: str | None


def candidates(signature: Signature, pattern: Pattern, affine: Affine) -> list[Candidate]:
    """What every kernel answers to a call, in the order in which they are asked."""
    return [Candidate(kernel.name, kernel.declines(signature, pattern, affine)) for kernel in KERNELS]


def choose(x: Tensor, pattern: Pattern, affine: Affine, name: str | None = None, mask: Tensor | None = None) -> Kernel:
    """The first kernel that takes the call, or the named one.

    Raises:
        KernelError: the named kernel is unknown or declines.
    """
    return choice(Signature.of(x, mask), pattern, affine, name)


@lru_cache(maxsize=4096)
def choice(signature: Signature, pattern: Pattern, affine: Affine, name: str | None = None) -> Kernel:
    """What :func:`choose` finds for tensors of this signature."""
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
        if t is not None:
            if type(t) not in _PLAIN:
                return f"{type(t).__name__} is a tensor subclass"
            if torch._C._functorch.is_functorch_wrapped_tensor(t):
                return "a tensor is left over from a torch.func transform"
            if torch._C._functorch.is_legacy_batchedtensor(t):
                return "gradients are asked for in batches"
    return None


def forward_of_sum(
    kernel: Kernel, x: Tensor, addend: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the sum x + addend that was normalized, its mean and M2: in one sweep where the kernel can.

    Raises:
        ValueError: the addend has another shape; a compiled graph asks here first.
    """
    if addend.shape != x.shape:
        raise ValueError(f"expected a residual of the input's shape {tuple(x.shape)}, got {tuple(addend.shape)}")
    fused = getattr(kernel, "forward_of_sum", None)
    dense = dense_strides(x.shape, x.stride())
    if fused is not None and x.stride() == dense == addend.stride() and not addend.is_neg():
        return fused(x, addend, pattern, centered, eps, finish)
    # As it is told to a compiled graph: like x, and not as an addition of two layouts would lie.
    total = torch.add(x, addend, out=torch.empty_like(x))
    y, mean, m2 = kernel.forward(total, pattern, centered, eps, finish)
    return y, total, mean, m2


class Gradients(NamedTuple):
    """dx and dz (for the residual) where wanted, Σ dz·x̂ and Σ dz of each parameter."""

    x: Tensor | None
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


def backward(
    kernel: Kernel,
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    centered: bool,
    eps: float,
    mean: Tensor,
    spread: Tensor,
    finish: Finish,
    *,
    given: bool,
    needs_input: bool,
    mask: Tensor | None = None,
    carried: Tensor | None = None,
) -> Gradients:
    """All gradients: fused where the kernel can, else from the verbs.

    Args:
        spread: the variance where statistics are ``given``, which carry no gradient; M2 of the batch otherwise.
        needs_input: whether dx or the residual's gradient is wanted.
        carried: what is added to dx, the gradient that x has by other ways; there is no mask then.
    """
    fused = getattr(kernel, "backward", None)
    if fused is not None and needs_input and not given:
        return Gradients(*fused(dy, x, pattern, centered, eps, mean, spread, finish, mask, carried))
    count: Any = x.numel() // max(mean.numel(), 1)
    if mask is not None:
        count = masks.counts(mask, pattern.bind(x.shape)).clamp_min(1)
    mean, rstd = eager.statistics(x, mean, spread if given else spread / count, eps)
    s1, s2, d_weight, d_bias = kernel.grad_sums(dy, x, pattern, mean, rstd, finish, mask)
    if not needs_input:
        return Gradients(None, d_weight, d_bias, None)
    c1 = None if given or not centered else s1 / count
    c2 = None if given else s2 / count
    dx, d_residual = kernel.grad_input(dy, x, pattern, mean, rstd, finish, c1, c2, mask)
    dx = dx if carried is None else dx + carried
    return Gradients(dx, d_weight, d_bias, d_residual)

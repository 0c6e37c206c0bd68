"""Norm: a layer for any pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.layers.remembering import Remembering
from evenorm.pattern import Pattern, PatternError, naming
from evenorm.statistics import Batch, Statistics

__all__ = ["Norm"]


class Norm(Remembering):
    r"""Normalization over any pattern.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta

    Args:
        pattern: which elements share statistics: ``"[n] c [...]"``.
        affine: the axes of γ and β, ``"g c"``, or an :class:`Affine`; ``None`` for no parameters. Unless given, the
            axes whose size is known.
        bias: whether there is a β beside γ.
        centered: whether the mean is subtracted.
        eps: added to the variance.
        statistics: where mean and variance come from; this batch unless given.
        history: the axes that running statistics keep; unless given, the kept axes whose size is known.
        activation: what follows, in the same sweep.
        device, dtype: of the parameters. Histories are float32 at the least.
        sizes: sizes of named axes, ``g=8, c=4``.

    Shape:
        Any that fits the pattern, to the same; γ and β have the shape of the affine's axes.

    Raises:
        PatternError: a pattern that cannot be read, or parameters on an axis of unknown size.

    >>> Norm("n (g [c]) [...]", g=2, c=3)
    Norm('n (g=2 [c=3]) [...]', affine='g c')
    >>> Norm("n [c] l", c=4)(torch.randn(2, 4, 5)).shape
    torch.Size([2, 4, 5])
    """

    def __init__(
        self,
        pattern: str | Pattern,
        *,
        affine: str | Affine | None = "",
        bias: bool = True,
        centered: bool = True,
        eps: float | None = 1e-5,
        statistics: Statistics | None = None,
        history: str = "",
        activation: str | Epilogue | None = None,
        device: Any = None,
        dtype: Any = None,
        **sizes: int,
    ) -> None:
        super().__init__()
        with naming("Norm"):
            self.epilogue = Epilogue.of(activation)
            self.pattern = Pattern.parse(pattern, **sizes) if isinstance(pattern, str) else pattern.with_sizes(**sizes)
            known = self._known
            if affine is None or isinstance(affine, Affine):
                self.scaling = affine or Affine()
            else:
                self.scaling = Affine(affine or known)
            self.centered, self.eps = centered, eps
            self.statistics = Batch() if statistics is None else statistics.on(Batch())
            kept = tuple(f.name for f in self.pattern.factors if not f.reduced and f.name in known)
            self.history_axes = (tuple(history.split()) or kept) if self.statistics.remembers(training=False) else ()
            shape = self._sizes(self.scaling.axes)
            own = bool(self.scaling.axes)
            self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if own else None
            self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if own and bias else None
            self._remember(device)
        self.reset_parameters()
        self.validate()
        self._complete_history(self.statistics)

    @property
    def features(self) -> tuple[str, ...]:
        """The affine's axes; without an affine those whose size is known."""
        return tuple(self.scaling.axes) or self._known

    @property
    def _known(self) -> tuple[str, ...]:
        axes = (axis.factors for axis in self.pattern.axes)
        return tuple(f.name for factors in axes if all(f.size for f in factors) for f in factors)

    def _remember(self, device: Any) -> None:
        remembers = self.statistics.remembers(training=False)
        if remembers and not self.history_axes:
            raise PatternError(
                "running statistics need an axis of known size to lie on; give its size, for example c=64",
                self.pattern.text,
            )
        shape = self._sizes(self.history_axes) if remembers else ()
        for name, dtype in (("running_mean", None), ("running_var", None), ("num_batches_tracked", torch.long)):
            size = () if dtype else shape
            self.register_buffer(name, torch.empty(size, device=device, dtype=dtype) if remembers else None)

    def reset_parameters(self) -> None:
        """The affine starts as the identity, and the history from nothing."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.scaling.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _sizes(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        sizes = {f.name: f.size for f in self.pattern.factors}
        for name in axes:
            if not sizes.get(name):
                raise PatternError(
                    f"weight, bias and history need the size of {name!r}; give it, for example {name}=64",
                    self.pattern.text,
                )
        return tuple(size for name in axes if (size := sizes[name]))

    def _choice(self) -> Statistics | None:
        return self.statistics

    def _choose(self, statistics: Statistics | None) -> None:
        self.statistics = Batch() if statistics is None else statistics

    def extra_repr(self) -> str:
        """The pattern and what differs from the defaults."""
        parts = [
            repr(self.pattern.text),
            f"affine={' '.join(self.scaling.axes)!r}" if self.scaling.axes else "affine=None",
        ]
        if self.scaling.axes and self.bias is None:
            parts.append("bias=False")
        if not self.centered:
            parts.append("centered=False")
        if self.eps != 1e-5:
            parts.append(f"eps={self.eps}")
        if not isinstance(self.statistics, Batch):
            parts.append(f"statistics={self.statistics!r}")
        return ", ".join(filter(None, [*parts, super().extra_repr()]))

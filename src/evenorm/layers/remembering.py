"""Layers that remember: running statistics, one or one for each domain, that can be frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evenorm.cache import cached
from evenorm.epilogue import Epilogue
from evenorm.layers.layer import Layer
from evenorm.pattern import naming
from evenorm.statistics import (
    Batch,
    Cumulative,
    Frozen,
    History,
    PerDomain,
    Running,
    Statistics,
    Window,
    parts,
)

__all__ = ["BatchLayer", "Remembering"]

_COUNTERS = ("num_batches_tracked", "num_batches_skipped", "num_values_seen")
_WINDOW = ("window_values", "window_mean", "window_M2", "window_batches")


class Remembering(Layer):
    """A layer with a history in torch's three buffers, and what torch has no buffer for, which no state dict holds."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_skipped: Tensor | None
    thawed: tuple[Statistics | None] | None = None

    @property
    def history(self) -> History | None:
        """The running statistics, if there are any."""
        buffers = self._buffers
        mean, variance = buffers.get("running_mean"), buffers.get("running_var")
        if mean is None or variance is None:
            return None
        window: Window | tuple[()] = ()
        if buffers.get("window_values") is not None:
            window = Window(*(buffers[name] for name in _WINDOW))  # type: ignore[arg-type]
        updates, skipped, seen = (buffers.get(name) for name in _COUNTERS)
        return History(mean, variance, updates, skipped, seen, window)

    def freeze(self) -> None:
        """Normalize with the running statistics from now on, in training too, and leave them as they are.

        It survives ``train()``; momentum and counters stay. Weight and bias are still trained: see
        ``requires_grad_``. ``unfreeze()`` takes it back.

        Raises:
            ValueError: the layer has no running statistics.
        """
        if self.history is None:
            raise ValueError(
                f"{self}: there are no running statistics to freeze; make it with track_running_stats=True"
            )
        if self.thawed is None:
            self.thawed = (self._choice(),)
            chosen = self.statistics
            self._choose(PerDomain(dict.fromkeys(chosen.keys, Frozen())) if isinstance(chosen, PerDomain) else Frozen())

    def unfreeze(self) -> None:
        """Take ``freeze()`` back."""
        if self.thawed is not None:
            (statistics,) = self.thawed
            self.thawed = None
            self._choose(statistics)

    def _choice(self) -> Statistics | None:
        """The statistics that were chosen for this layer."""
        raise NotImplementedError

    def _choose(self, statistics: Statistics | None) -> None:
        """Choose others, for the same buffers."""
        raise NotImplementedError

    def _complete_history(self, statistics: Statistics) -> None:
        """Add what torch has no buffer for; float32 at the least; one history upon the other for several domains."""
        mean, variance, updates = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or variance is None or updates is None:
            if _needs_history(statistics):
                raise ValueError(
                    f"{self}: there are no running statistics for this to keep; make the layer with "
                    f"track_running_stats=True, or with an average: Running(0.1)"
                )
            return
        least = torch.promote_types(mean.dtype, torch.float32)
        domains = (len(statistics.keys),) if isinstance(statistics, PerDomain) else ()
        self.running_mean = mean.to(least).expand(*domains, *mean.shape).clone()
        self.running_var = variance.to(least).expand(*domains, *variance.shape).clone()
        self.num_batches_tracked = updates.expand(domains).clone()
        self.register_buffer("num_batches_skipped", torch.zeros_like(self.num_batches_tracked), persistent=False)
        sources = [choice.flat() for choice in statistics.choices()]
        if any(getattr(source.average, "variance", None) == "population" for source in sources):
            values = torch.zeros_like(self.running_mean, dtype=torch.float64)
            self.register_buffer("num_values_seen", values, persistent=False)
        if any(source.counts_batches for source in sources):
            for name, like in zip(_WINDOW, (mean, mean, mean, updates), strict=True):
                dtype = torch.long if like is updates else torch.float64
                zeros = torch.zeros((*domains, *like.shape), dtype=dtype, device=mean.device)
                self.register_buffer(name, zeros, persistent=False)

    def reset_running_stats(self) -> None:
        """The history starts again: mean 0, variance 1, no updates, no window begun."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()
        for name in ("num_batches_skipped", "num_values_seen", *_WINDOW):
            if (buffer := self._buffers.get(name)) is not None:
                buffer.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # One history is given to every domain.
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            mine, loaded = self._buffers.get(name), state_dict.get(prefix + name)
            if mine is not None and isinstance(loaded, Tensor) and loaded.dim() == mine.dim() - 1:
                state_dict[prefix + name] = loaded.expand(mine.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _needs_history(statistics: Statistics) -> bool:
    """Whether they mean nothing without running statistics."""
    sources = [choice.flat() for choice in statistics.choices()]
    return isinstance(statistics, PerDomain) or any(
        isinstance(s.average, (Running, Cumulative, Frozen)) or s.counts_batches for s in sources
    )


@cached
def _completed(statistics: Statistics, base: Statistics) -> Statistics:
    return statistics.on(base)


class BatchLayer(Remembering):
    """A layer with torch's running statistics: ``momentum``, ``track_running_stats`` and three buffers."""

    least_values = 2
    momentum: float | None
    track_running_stats: bool
    meaningless: ClassVar[Mapping[type[Statistics], str]] = {}
    """Statistics that mean nothing here, each with the reason."""

    chosen: Statistics | None = None
    """The statistics that were asked for; ``None`` is the running average that ``momentum`` says."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        decay: float | None = None,
        activation: str | Epilogue | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        name = type(self).__name__.removeprefix("Fused")
        if decay is not None and momentum != 0.1:
            raise ValueError(f"{name}: give either momentum or decay, got momentum={momentum} and decay={decay}")
        with naming(name):
            self.epilogue = Epilogue.of(activation)
            given = None if decay is None else Running(decay=decay).momentum
            beyond = self.epilogue.activation != "identity" or statistics is not None
            if beyond and isinstance(self, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    "a class derived from torch's batch norm loses its activation and its statistics in converters; "
                    "derive from evenorm.layers.batch.FusedBatchNorm2d (1d, 3d) instead"
                )
        if given is not None:
            momentum = given
        elif momentum is not None and 0.9 <= momentum < 1:
            warnings.warn(
                f"{name}: momentum={momentum} keeps {1 - momentum:.3g} of the past at each step "
                f"(torch's convention). If {momentum} of the past should stay, write decay={momentum}",
                stacklevel=2 + (type(self).__init__ is not BatchLayer.__init__),
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        with naming(name):
            self.chosen = statistics
            if statistics is not None and not isinstance(statistics, Statistics):
                raise ValueError(
                    f"statistics must be Running(…), Synced(…) or others of their kind, got {statistics!r}"
                )
            for part in () if statistics is None else parts(statistics):
                if (reason := self.meaningless.get(type(part))) is not None:
                    raise ValueError(f"{type(part).__name__}(…) means nothing here: {reason}")
        self.validate()
        self._complete_history(self.statistics)

    @property
    def statistics(self) -> Statistics:  # type: ignore[override]
        """Where mean and variance come from, read from the attributes."""
        if self._buffers["running_mean"] is None or (self.training and not self.track_running_stats):
            base: Statistics = Batch()
        else:
            base = self.averaging
        return base if self.chosen is None else _completed(self.chosen, base)

    @property
    def averaging(self) -> Statistics:
        """The running average that ``momentum`` asks for."""
        return Cumulative("unbiased") if self.momentum is None else Running(self.momentum)

    def _choice(self) -> Statistics | None:
        return self.chosen

    def _choose(self, statistics: Statistics | None) -> None:
        self.chosen = statistics

    def extra_repr(self) -> str:
        """Torch's, and the statistics that were chosen."""
        chosen = "" if self.chosen is None else f", statistics={self.chosen!r}"
        return super().extra_repr() + chosen

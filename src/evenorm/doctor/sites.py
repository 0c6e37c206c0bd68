"""A site: a normalizer found in a model, whatever its class is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from evenorm.doctor.behavior import Behavior, Kind, behavior
from evenorm.layers.layer import Layer

__all__ = ["Site", "find_sites", "versions"]

EPS_NAMES = ("eps", "variance_epsilon", "epsilon")


@dataclass(frozen=True)
class Site:
    """A normalizer of a model.

    Attributes:
        path: as in ``named_modules``.
        kind: what shares statistics: ``batch``, ``instance``, ``group``, ``layer``, ``rms``.
        found: by torch's or our class, by its running statistics, or by experiment.
        behavior: what the experiment showed, where it was by experiment.
    """

    path: str
    module: nn.Module
    kind: Kind
    found: Literal["class", "structure", "behavior"]
    behavior: Behavior | None = None

    @property
    def label(self) -> str:
        """The class's name, for people."""
        return type(self.module).__name__

    @property
    def training(self) -> bool:
        """The module's mode."""
        return self.module.training

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its own parameters by name."""
        return dict(self.module.named_parameters(recurse=False))

    @property
    def weight(self) -> Tensor | None:
        """γ: a parameter or a buffer."""
        return self._affine(("weight", "gamma", "scale", "g"), place=0)

    @property
    def bias(self) -> Tensor | None:
        """β, likewise."""
        return self._affine(("bias", "beta", "shift", "b"), place=1)

    def _affine(self, names: tuple[str, ...], place: int) -> Tensor | None:
        for name in names:
            value = getattr(self.module, name, None)
            if isinstance(value, Tensor):
                return value
        own = list(self.parameters.values())
        return own[place] if self.found == "behavior" and len(own) > place else None

    @property
    def eps(self) -> float | None:
        """The eps as the module names it; ``None`` where it names none."""
        values = (getattr(self.module, name, None) for name in EPS_NAMES)
        return next((float(value) for value in values if isinstance(value, (int, float))), None)

    def set_eps(self, eps: float) -> None:
        """Write the eps to where the module names it."""
        for name in EPS_NAMES:
            if hasattr(self.module, name):
                setattr(self.module, name, eps)

    @property
    def momentum(self) -> float | None:
        """The momentum, in torch's convention."""
        return getattr(self.module, "momentum", None)

    @property
    def running_mean(self) -> Tensor | None:
        """Running mean."""
        return getattr(self.module, "running_mean", None)

    @property
    def running_var(self) -> Tensor | None:
        """Running variance."""
        return getattr(self.module, "running_var", None)

    @property
    def updates(self) -> int | None:
        """Updates of the running statistics, where they are counted."""
        counter = getattr(self.module, "num_batches_tracked", None)
        return int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None

    @property
    def remembers(self) -> bool:
        """Whether there are running statistics."""
        return self.running_mean is not None and self.running_var is not None

    def uses_batch(self, training: bool | None = None) -> bool:
        """Whether this batch's statistics normalize, in the module's mode or in one given."""
        training = self.training if training is None else training
        module = self.module
        if isinstance(module, Layer):
            return not (module.history is not None and module.statistics.remembers(training))
        if isinstance(module, _InstanceNorm):
            return training or not module.track_running_stats
        if isinstance(module, _NormBase):
            return training or not self.remembers
        if self.remembers:
            return training and (self.behavior is not None)
        return True

    def updates_history(self) -> bool:
        """Whether a forward in the module's mode moves the running statistics."""
        tracks = getattr(self.module, "track_running_stats", True)
        return self.training and self.remembers and bool(tracks) and self.uses_batch(training=True)

    def values(self, shape: tuple[int, ...]) -> int:
        """Values per statistic for an input of this shape, when the batch normalizes."""
        module = self.module
        if isinstance(module, Layer):
            pattern, part = module.smallest(torch.empty(shape, device="meta"), module.recipe)
            return pattern.bind(part).count
        if self.behavior is not None:
            size = prod(shape[axis] for axis in self.behavior.axes if -len(shape) <= axis < len(shape))
            return size // self.behavior.groups
        if self.kind == "batch":
            return prod(shape) // shape[1]
        if self.kind == "instance":
            return prod(shape[2:]) if len(shape) == self.axes else prod(shape[1:])
        if self.kind == "group":
            return prod(shape[1:]) // int(getattr(module, "num_groups", 1))
        normalized = getattr(module, "normalized_shape", shape[-1:])
        return prod(normalized)

    @property
    def axes(self) -> int | None:
        """Axes of a batched input, where the class fixes them: 4 for InstanceNorm2d."""
        for digit in "123":
            names = {base.__name__ for base in type(self.module).__mro__}
            if any(name.endswith(f"Norm{digit}d") for name in names):
                return int(digit) + 2
        return None

    def __str__(self) -> str:
        return f"{self.label} at {self.path or 'the root'}"


def versions(sites: Iterable[Site]) -> dict[str, int]:
    """A number for each site that grows with every update of its statistics, by one where updates are counted.

    Reading it costs no transfer from the device.
    """
    numbers = {}
    for site in sites:
        counter = getattr(site.module, "num_batches_tracked", None)
        counter = site.running_mean if counter is None else counter
        if isinstance(counter, Tensor) and not counter.is_inference():
            numbers[site.path] = counter._version
    return numbers


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every normalizer of a model, in the order of ``named_modules``; a shared one once.

    >>> [(site.path, site.kind) for site in find_sites(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))]
    [('1', 'layer')]
    """
    return tuple(_sites(model))


def _sites(model: nn.Module) -> Iterator[Site]:
    known: dict[Any, Behavior | None] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside or isinstance(module, nn.modules.lazy.LazyModuleMixin):
            continue
        kind = _kind_of_class(module)
        if kind is not None:
            inside.update(module.modules())
            yield Site(path, module, kind, "class")
        elif _remembers(module):
            yield Site(path, module, "batch", "structure", _seen(module, known))
        elif _may_normalize(module):
            seen = _seen(module, known)
            if seen is not None:
                inside.update(module.modules())
                yield Site(path, module, seen.kind, "behavior", seen)


def _kind_of_class(module: nn.Module) -> Kind | None:
    if isinstance(module, _InstanceNorm):
        return "instance"
    if isinstance(module, (_BatchNorm, _NormBase)):
        return "batch"
    if isinstance(module, nn.GroupNorm):
        return "group"
    if isinstance(module, nn.RMSNorm):
        return "rms"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if isinstance(module, Layer):
        return _kind_of_pattern(module)
    return None


def _kind_of_pattern(layer: Layer) -> Kind:
    """The kind nearest to a pattern of ours."""
    first = layer.recipe.pattern.factors[0]
    if first.reduced or any(f.reduced for f in layer.recipe.pattern.axes[0].factors):
        return "batch"
    if not layer.centered:
        return "rms"
    return "layer"


def _remembers(module: nn.Module) -> bool:
    """Whether it keeps a mean and a variance of one size: the structure of a batch norm of any name."""
    buffers = dict(module.named_buffers(recurse=False))
    mean, variance = buffers.get("running_mean"), buffers.get("running_var")
    return mean is not None and variance is not None and mean.shape == variance.shape


def _may_normalize(module: nn.Module) -> bool:
    """Whether an experiment is worth its time: a small module of one's own with at most a scale and a shift."""
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
        return False
    if any(True for _ in module.children()):
        return False
    own = list(module.parameters())
    return len(own) <= 2 and all(p.numel() == max(p.shape, default=1) and p.numel() > 1 for p in own)


def _seen(module: nn.Module, known: dict[Any, Behavior | None]) -> Behavior | None:
    """The experiment's result, made once for modules of one class and one size."""
    sizes = tuple(p.shape for p in module.parameters())
    settings = tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, (int, float, str))))
    key = (type(module), sizes, settings)
    if key not in known:
        known[key] = behavior(module)
    return known[key]

"""A checkpoint beside the model that it is for: what it lacks of the normalizers, and what it has in excess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from evenorm.doctor.sites import Site

__all__ = ["Checkpoint"]

# What wrappers put before every name.
WRAPPERS = ("module.", "_orig_mod.")
HISTORY = ("running_mean", "running_var")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by the model's names, as far as they fit."""

    tensors: Mapping[str, Tensor]
    spare: tuple[str, ...]

    @staticmethod
    def of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Checkpoint:
        """Take wrappers' prefixes off and see which names the model has."""
        tensors = {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}
        for wrapper in WRAPPERS * 2:
            if tensors and all(name.startswith(wrapper) for name in tensors):
                tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
        known = set(model.state_dict(keep_vars=True))
        return Checkpoint(tensors, tuple(name for name in tensors if name not in known))

    def load(self, model: nn.Module) -> list[str]:
        """Put what fits into the model it is for; returns the names of what did not fit."""
        own = model.state_dict()
        fitting = {name for name, value in self.tensors.items() if name in own and own[name].shape == value.shape}
        model.load_state_dict({name: self.tensors[name] for name in fitting}, strict=False)
        return [name for name in self.tensors if name not in fitting]

    def knows(self, site: Site) -> bool:
        """Whether the checkpoint has something of the module or of the part that holds it."""
        around = site.path.rpartition(".")[0]
        return any(name.startswith(f"{around}." if around else "") for name in self.tensors)

    def history(self, site: Site) -> tuple[Tensor | None, Tensor | None]:
        """The running mean and variance that it has for a site."""
        mean, variance = (self.tensors.get(_join(site.path, name)) for name in HISTORY)
        return mean, variance

    def lacks(self, sites: Sequence[Site]) -> list[str]:
        """Names of running statistics that the sites need and the checkpoint does not have."""
        return [
            name
            for site in sites
            if site.remembers and (self.spare_history or self.knows(site))
            for name in (_join(site.path, part) for part in HISTORY)
            if name not in self.tensors
        ]

    @property
    def spare_history(self) -> list[str]:
        """Names of running statistics that fit nothing in the model."""
        return [name for name in self.spare if name.rpartition(".")[2] in HISTORY]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

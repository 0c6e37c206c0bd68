"""Weight decay of the normalizers' parameters, as an optimizer's groups have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.sites import Site

__all__ = ["Decayed", "decays", "undecay"]


@dataclass(frozen=True)
class Decayed:
    """A trainable parameter of a normalizer and its decay.

    Attributes:
        name: its full name.
        role: weight or bias.
        decay: of its group.
        own_group: whether the group without decay was made for such parameters: no layer's matrix is in it.
    """

    name: str
    site: Site
    role: Literal["weight", "bias"]
    parameter: Tensor
    decay: float
    own_group: bool


def decays(model: nn.Module, sites: Sequence[Site], optimizer: Optimizer) -> list[Decayed]:
    """Every trainable parameter of a normalizer that the optimizer has."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    matrices = _matrices(model)
    found = []
    for site in sites:
        for name, parameter in site.parameters.items():
            group = groups.get(id(parameter))
            if group is None or not parameter.requires_grad:
                continue
            mixed = any(id(p) in matrices for p in group["params"])
            full = f"{site.path}.{name}" if site.path else name
            role: Literal["weight", "bias"] = "bias" if parameter is site.bias else "weight"
            found.append(Decayed(full, site, role, parameter, float(group.get("weight_decay", 0.0)), not mixed))
    return found


def _matrices(model: nn.Module) -> set[int]:
    """The weights of layers that decay is for: two axes or more, and no table of embeddings."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return {id(p) for p in model.parameters() if p.dim() > 1 and p.numel() > max(p.shape)} - tables


def undecay(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Move parameters into groups without decay that are otherwise like their own."""
    moved = {id(p) for p in parameters}
    new: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        leaving = [p for p in group["params"] if id(p) in moved]
        if leaving and group.get("weight_decay", 0.0):
            group["params"] = [p for p in group["params"] if id(p) not in moved]
            new.append({**group, "params": leaving, "weight_decay": 0.0})
    for group in new:
        optimizer.add_param_group(group)

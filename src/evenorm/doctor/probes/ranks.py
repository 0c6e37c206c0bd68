"""M10, rank agreement: do all processes hold the same normalizers?"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor

from evenorm.doctor.subject import Subject

__all__ = ["Ranks", "ranks"]

# Whoever examines on one rank alone shall not wait for the others for ever.
PATIENCE = timedelta(seconds=20)
_asked = 0


@dataclass(frozen=True)
class Ranks:
    """The normalizers' tensors of each rank by name, and a digest of all other tensors that every rank has whole."""

    norms: Sequence[Mapping[str, Tensor]]
    others: Sequence[str]

    @property
    def agree_elsewhere(self) -> bool:
        """Whether all else is the same on every rank, as in data parallel training."""
        return len(set(self.others)) == 1

    def everywhere(self, name: str) -> list[Tensor]:
        """One tensor of every rank; empty where ranks differ in what they have."""
        held = [norms[name] for norms in self.norms if name in norms]
        whole = len(held) == len(self.norms) and len({t.shape for t in held}) == 1
        return [t.double() for t in held] if whole else []


def ranks(subject: Subject) -> Ranks | None:
    """Of the process group, if every rank examines, or of the checkpoints of all ranks, if these were given."""
    names = {
        name
        for site in subject.sites
        for tensor in (*site.parameters.values(), site.running_mean, site.running_var)
        if (name := subject.names.get(id(tensor))) is not None
    }
    if len(subject.checkpoints) > 1:
        views = [_view(state, names) for state in subject.checkpoints]
    elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        views = _gathered(subject, _view(_state(subject), names))
    else:
        return None
    return Ranks([norms for norms, _ in views], [others for _, others in views]) if views else None


def _state(subject: Subject) -> dict[str, Tensor]:
    tensors = {**dict(subject.model.named_parameters()), **dict(subject.model.named_buffers())}
    return {name: t for name, t in tensors.items() if not t.is_meta and not isinstance(t, DTensor)}


def _view(state: Mapping[str, Any], names: set[str]) -> tuple[dict[str, Tensor], str]:
    """The normalizers' tensors, and the digest of the others."""
    tensors = {n.removeprefix("module."): t.detach().cpu() for n, t in state.items() if isinstance(t, Tensor)}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name not in names and tensor.is_floating_point():
            digest.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {name: tensors[name] for name in sorted(names & set(tensors))}, digest.hexdigest()


def _gathered(subject: Subject, own: tuple[dict[str, Tensor], str]) -> list[tuple[dict[str, Tensor], str]]:
    """Through the group's store, where nothing hangs if the other ranks do not ask."""
    global _asked
    store: Any = distributed_c10d._get_default_store()
    rank, world = dist.get_rank(), dist.get_world_size()
    keys = [f"evenorm/examined/{_asked}/{other}" for other in range(world)]
    packed = io.BytesIO()
    torch.save({"norms": own[0], "others": own[1]}, packed)
    store.set(keys[rank], packed.getvalue())
    try:
        store.wait(keys, PATIENCE)
    except RuntimeError:
        # A timeout, as each kind of store calls it.
        store.delete_key(keys[rank])
        subject.notes.append(f"only some of {world} ranks are examined: EN302 and EN309 need examine() on all of them")
        return []
    _asked += 1
    states = [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in keys]
    return [(state["norms"], state["others"]) for state in states]

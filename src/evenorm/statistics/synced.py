"""Statistics of all processes of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from evenorm.statistics.source import Composed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import GroupName

__all__ = ["Processes", "Synced"]


@dataclass(frozen=True)
class Processes:
    """The processes of a group, by its name: a plain value, which a compiled graph can hold."""

    name: GroupName
    size: int

    @staticmethod
    def of(group: ProcessGroup | None) -> Processes:
        """The processes of a group; of all where there is none.

        Raises:
            RuntimeError: ``torch.distributed`` is not initialized, or this process is not in the group.
        """
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "Synced: torch.distributed is not initialized; call torch.distributed.init_process_group(…) first, "
                "or .eval() to use the running averages"
            )
        group = dist.group.WORLD if group is None else group
        if not isinstance(group, dist.ProcessGroup):
            raise RuntimeError("Synced: this process is not in the process group that it should synchronize with")
        return Processes(group.group_name, group.size())

    def gather(self, packet: Tensor) -> Tensor:
        """One all_gather."""
        import torch.distributed._functional_collectives as collectives

        rows = collectives.all_gather_single(packet, 0, self.name)
        return collectives.wait_tensor(rows).reshape(self.size, -1)


@dataclass(frozen=True, repr=False)
class Synced(Composed):
    """The statistics of all processes of a group: one batch, wherever its parts lie.

    Forward, each rank gives count, mean and M2 of its part and a tag, and merges those of all in rank order, so all
    ranks hold the same bits; backward, the two sums of the gradient. Parts may differ in size, and may be empty.
    Gradients of weight and bias are this rank's own, which DistributedDataParallel averages. In evaluation nothing
    is exchanged.

    Every rank must call the same layers in the same order; one that does not, or that ends, makes an error on all.
    Ranks know a layer by its kind, its size and its group, and by how many such were made before; what else a rank
    makes does not matter. (Where packets differ in size gloo ends the process that expected the smaller one, in its
    own words; ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` says where. Calls of :func:`normalize` have no number of their own.)

    Args:
        process_group: the group; all processes unless given.
        of: the average that is the history.

    Raises:
        ValueError: a composition that means nothing.
        RuntimeError: at the call, torch.distributed is not initialized.
        SyncError: at the call, the ranks are in different places of the program.

    Source:
        Chan, Golub & LeVeque (1979), eq. 2.1, for the merging; Ioffe & Szegedy (2015), section 3, for the gradient.
    """

    process_group: Any = None
    place: ClassVar[str] = "synced"

    @property
    def group(self) -> Processes:
        """The processes."""
        return Processes.of(self.process_group)

    def __str__(self) -> str:
        return f"all processes together, {self.of or 'the average'}"

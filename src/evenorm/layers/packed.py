"""Packed sequences: unpacked for a layer, and packed again as they were."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

__all__ = ["padded", "repacked"]


def padded(packed: PackedSequence, features_first: bool) -> tuple[Tensor, Tensor]:
    """(N, L, D), or (N, D, L), and the lengths (N,)."""
    x, lengths = pad_packed_sequence(packed, batch_first=True)
    return (x.transpose(1, 2) if features_first else x), lengths


def repacked(y: Tensor, like: PackedSequence, features_first: bool) -> PackedSequence:
    """The reverse, in the order of another packed sequence."""
    y = y.transpose(1, 2) if features_first else y
    if like.sorted_indices is not None:
        y = y.index_select(0, like.sorted_indices)
    # The first step has every sequence, the last only the longest.
    lengths = (like.batch_sizes[None] > like.batch_sizes.new_tensor(range(y.shape[0]))[:, None]).sum(1)
    data = pack_padded_sequence(y, lengths, batch_first=True).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)

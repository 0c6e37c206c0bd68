"""One of several processes: its checks, by name. ``ranks.py`` starts it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

import rank_calls
import rank_faults
import rank_statistics
from rank_setting import CHECKS, COUNT, RANK

__all__ = ["rank_calls", "rank_faults", "rank_statistics"]

# Longer than a busy machine takes to start the last process.
PATIENCE = timedelta(seconds=60)


def main() -> None:
    store = dist.FileStore(  # type: ignore[attr-defined]
        os.environ["STORE"], COUNT
    )
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=COUNT, timeout=PATIENCE)
    for name in sys.argv[1:]:
        torch.manual_seed(0)
        sys.stdout.write(f"{name}\n")
        CHECKS[name]()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

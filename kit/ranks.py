"""Several processes that train together: the only place that asks torch.distributed.

Alone, every function here does nothing, so that `fit` reads as if there were one.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def rank_and_world() -> tuple[int, int]:
    """Rank of this process, from 0, and number of processes; (0, 1) alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def parallel(model: nn.Module) -> nn.Module:
    """The network, its gradients averaged over all processes (Li et al., 2020)."""
    _, world = rank_and_world()
    return DistributedDataParallel(model) if world > 1 else model


def add_up(sums: torch.Tensor) -> torch.Tensor:
    """Each number summed over all processes."""
    _, world = rank_and_world()
    if world > 1:
        distributed.all_reduce(sums)
    return sums


def take_buffers_of_rank0(model: nn.Module) -> None:
    """Batch-norm statistics are those of the images that a process saw; all take those
    of rank 0.
    """
    _, world = rank_and_world()
    for buffer in model.buffers() if world > 1 else ():
        distributed.broadcast(buffer, src=0)


def wait_for_all() -> None:
    """Go on when every process has come here: rank 0 has read or written a file."""
    _, world = rank_and_world()
    if world > 1:
        distributed.barrier()

"""Several processes that train together: the only place that asks torch.distributed."""

from __future__ import annotations

import platform

import torch

from kit.files import CourseError
from kit.machine import best_device


def ranks() -> tuple[int, int]:
    """Rank of this process, from 0, and number of processes that train together: (0, 1)
    for a process alone.
    """
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)


def sum_over_ranks(*numbers: float) -> tuple:
    """Sum of each number over all processes, which all have to call this; of one alone,
    the numbers themselves.
    """
    if ranks()[1] == 1:
        return numbers
    device = best_device() if torch.distributed.get_backend() == "nccl" else "cpu"
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return tuple(
        type(number)(total)
        for number, total in zip(numbers, sums.tolist(), strict=True)
    )


def from_rank0(work):
    """Result of `work()` on every process, which rank 0 alone runs: files are read and
    written once.

    Raises
    ------
    Exception
        What `work` raised, on every process: none is left waiting.
    """
    rank, world = ranks()
    if world == 1:
        return work()
    answer = [None, None]
    if rank == 0:
        try:
            answer[0] = work()
        except Exception as error:
            answer[1] = error
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise raise_everywhere(answer[1])
    return answer[0]


def gather_ranks(thing) -> list:
    """What every process has, in the order of their ranks."""
    everybody = [thing] * ranks()[1]
    if len(everybody) > 1:
        torch.distributed.all_gather_object(everybody, thing)
    return everybody


def check_ranks(facts: dict) -> None:
    """Refuse processes that are not about to do the same work.

    Raises
    ------
    CourseError
        On every process: the first of the facts that is another one, at which rank, on
        which machine.
    """
    everybody = gather_ranks((platform.node(), facts))
    machine, first = everybody[0]
    for rank, (node, own) in enumerate(everybody):
        for what in facts:
            if own[what] != first[what]:
                raise raise_everywhere(
                    CourseError(
                        f"These processes cannot train together: rank {rank} on {node}"
                        f" has {what} {own[what]}, rank 0 on {machine} has"
                        f" {first[what]}. Give all of them the same kit, packages,"
                        " images and options."
                    )
                )


def raise_everywhere(error: Exception) -> Exception:
    """Mark an error that every process raises: one of them is enough to say it."""
    error.everywhere = True
    return error

"""Divides a node's cores between the engine and the measuring client."""

import os
from typing import Literal

from backends.launch.gpus import find_gpu, present

CORES_PER_CLIENT_CORE = 8  # the measuring client gets one core in this many


def split_cores(gpus: tuple[str, ...], processes: int | Literal["auto"]) -> tuple[list[int], set[int]]:
    """Return the cores of the engine and of the measuring client, which are separate if there are two or more cores.

    The client gets one core per process, but no more than the engine; by default one core in eight. With GPUs, the
    cores are divided among the GPUs, since the node may run several deployments.
    """
    cores = sorted(os.sched_getaffinity(0))
    indexes = [gpu.number for gpu in filter(None, map(find_gpu, gpus))]
    if indexes and len(set(indexes)) == len(gpus):  # slices of one GPU (MIG) share its cores
        share = len(cores) // max(len(present()), max(indexes) + 1)
        if share >= 2:
            cores = [core for index in indexes for core in cores[index * share : (index + 1) * share]]
    if len(cores) < 2:
        return cores, set(cores)
    clients = max(1, len(cores) // CORES_PER_CLIENT_CORE if processes == "auto" else min(processes, len(cores) // 2))
    return cores[:-clients], set(cores[-clients:])

"""Divides a node's cores and GPUs among several engines, or among the ranks of one engine."""

from collections.abc import Sequence
from dataclasses import replace

from backends.base import Launch


def shares(cores: Sequence[int], number: int) -> list[tuple[int, ...]]:
    """Return equal parts of these cores. If there are fewer cores than parts, every part gets all cores."""
    size = len(cores) // number
    return [tuple(cores[part * size : (part + 1) * size] if size else cores) for part in range(number)]


def replica_launches(launch: Launch, replicas: int, here: range | None = None) -> list[Launch]:
    """Return each replica's launch, with a folder and its share of the GPUs and cores (all cores if there are few).

    `here`: the numbers, from 0, of those that run on this node; None: all.
    """
    if replicas == 1:
        return [launch]
    here = here or range(replicas)
    gpus, cpus = len(launch.gpus) // len(here), shares(launch.cpus, len(here))
    return [
        replace(
            launch,
            replica=f"replica {number + 1} of {replicas}",
            workdir=launch.workdir / f"replica-{number + 1}",
            gpus=launch.gpus[place * gpus : (place + 1) * gpus],
            cpus=cpus[place],
            threads=max(1, launch.threads // len(here)),
        )
        for place, number in enumerate(here)
    ]

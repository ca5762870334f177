"""The replicas of an engine on one node: what each of them gets of it."""

from dataclasses import replace

from backends.base import Launch


def replica_launches(launch: Launch, replicas: int) -> list[Launch]:
    """Return the launch of each replica: its own folder, and an equal share of the GPUs and of the cores.

    Where there are fewer cores than replicas, all of them run on all cores.
    """
    if replicas == 1:
        return [launch]
    gpus, cores = len(launch.gpus) // replicas, len(launch.cpus) // replicas
    return [
        replace(
            launch,
            replica=f"replica {number + 1} of {replicas}",
            workdir=launch.workdir / f"replica-{number + 1}",
            gpus=launch.gpus[number * gpus : (number + 1) * gpus],
            cpus=launch.cpus[number * cores : (number + 1) * cores] if cores else launch.cpus,
            threads=max(1, launch.threads // replicas),
        )
        for number in range(replicas)
    ]

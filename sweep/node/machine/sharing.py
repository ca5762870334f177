"""The name common to sweeps that share a machine on purpose, and therefore do not exclude each other."""

import os

from backends.launch import supervisor
from sweep.base.config import Cluster

VARIABLE = "SWEEP_SHARED_MACHINE"


def sharing_name(cluster: Cluster) -> str:
    """Return the sharing name that is set for this node, or an empty string."""
    return cluster.shared_machine or os.environ.get(VARIABLE, "")


def sharing_pids(name: str) -> set[int]:
    """Return the processes on this machine that were started under this name."""
    if not name:
        return set()
    return {pid for pid in supervisor.all_pids() if supervisor.process_environment(pid).get(VARIABLE) == name}

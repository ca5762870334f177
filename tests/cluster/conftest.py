"""One Ray of several nodes for all fault tests; a test that kills a node gets it back before the next."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweep.base.config import cache_directory
from tests.cluster.harness import RayCluster, Sweep


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> RayCluster:
    ray_cluster.revive()
    ray_cluster.wait()
    return ray_cluster


@pytest.fixture
def sweep_of(tmp_path: Path) -> Iterator[Any]:
    """sweep_of(*arguments) -> Sweep in a folder of this test; what is left of it is killed afterwards."""
    sweeps: list[Sweep] = []

    def make(*arguments: str, **environment: str) -> Sweep:
        cache = cache_directory(os.environ.get("SWEEP_TEST_CACHE"))
        sweeps.append(Sweep(tmp_path / f"out{len(sweeps)}", *arguments, cache=cache, environment=environment))
        return sweeps[-1]

    yield make
    for sweep in sweeps:
        if sweep.process is not None and sweep.process.poll() is None:
            sweep.process.kill()
            sweep.process.wait()

"""Under fire every trial ends with one good row. Ten seeds and twice as many trials: scripts/chaos.py."""

import os
import sys

import pytest

from sweep.base.config import cache_directory
from tests.cluster.chaos import COMMANDS, POINTS, storm
from tests.cluster.harness import write_engine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.full)])
def test_chaos(cluster, tmp_path, seed):
    engine = write_engine(tmp_path / "engine", sys.executable)
    cache = cache_directory(os.environ.get("SWEEP_TEST_CACHE"))
    result = storm(seed, cluster, tmp_path / "out", cache, engine, replicates=2)
    print(result)
    assert result.outcomes == {"ok": 2 * POINTS}
    assert result.commands <= COMMANDS
    assert result.twice == 0, "no trial was measured well twice"
    assert result.killed.total() - result.killed["nothing"] >= 4

"""A sweep as a job of a real Slurm. scripts/slurm-check runs all cases; this is the one that a night depends on."""

import sys
import time

import pytest

from sweep.base.config import cache_directory
from tests.cluster import slurm_cases
from tests.cluster.slurm import Slurm, obstacle


@pytest.mark.ray
@pytest.mark.xdist_group("network")
@pytest.mark.timeout(900)  # with the installation of Slurm; the rest takes two to five minutes
def test_a_job_on_two_nodes_survives_the_loss_of_one(tmp_path):
    """scontrol takes one node down while both measure: the job goes on with the other, and every trial is ok."""
    if reason := obstacle():
        pytest.skip(reason)
    with Slurm() as slurm:
        begin = time.monotonic()
        end = slurm_cases.node_down(slurm, tmp_path, cache_directory(None))
        assert (end.state, end.status, end.requeued) == ("COMPLETED", 0, 0), slurm.jobs[0].log()
        assert (end.outcomes, end.twice, end.nodes) == ({"ok": end.trials}, 0, 2), slurm.jobs[0].log()
        print(f"{time.monotonic() - begin:.0f} s from the start of Slurm to the end of the job", file=sys.stderr)

"""A short soak: 80 trials on four nodes of their own under random faults. The long one is scripts/soak.py."""

import sys

import pytest

from tests.cluster.soak import soak
from tests.cluster.surroundings import obstacle

NODES, TRIALS = 4, 80
EVERY = 12.0  # mean s between faults
OUTAGE = 20.0  # a hub's longest, s


@pytest.mark.ray
@pytest.mark.xdist_group("network")
@pytest.mark.timeout(1500)  # about two minutes on a quiet machine
def test_trials_on_four_nodes_under_random_faults(tmp_path):
    if reason := obstacle():
        pytest.skip(reason)
    with soak(tmp_path, seed=1, nodes=NODES, trials=TRIALS, every=EVERY, outage=OUTAGE) as storm:
        end = storm.run(1200, most_commands=60)
    print(end, file=sys.stderr)
    assert (end.measured, end.lost, end.doubled, end.leaked) == (TRIALS, 0, 0, []), end
    assert end.tracebacks == 0, end
    assert sum(end.faults.values()) >= 3, "the faults struck"  # about ten; fewer, the sooner it is over

"""Searches for capacities on a cluster: configurations side by side on two (invented) GPUs, and a driver that dies."""

import heapq
import json
import random

import pytest

from tests.cluster.harness import RayCluster
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TTFT, SLOTS, OUTPUT, BOUND = 0.1, 4, 11, 0.5
SLOW, FAST = 0.02, 0.01  # s between tokens
SEARCH = (
    *("cluster=ray", "hardware=gpu", "agreement=false", "load=poisson", "workload=serving", "workload.spread=0"),
    *("workload.input_tokens=16", f"workload.output_tokens={OUTPUT}", f"backend.max_concurrency={SLOTS}"),
    *(f"backend.ttft.mean={TTFT}", f"backend.itl.mean={SLOW},{FAST}", f"slo=ttft={BOUND}s", "capacity={budget: 20s}"),
)
WITHIN = 280  # s


def capacity(itl):
    """The rate at which 90% of requests wait long enough to just meet the bound, in a queue with SLOTS lanes."""
    service = TTFT + (OUTPUT - 1) * itl
    low, high = 1.0, SLOTS / service
    for _ in range(12):
        rate, lanes, due, good = (low + high) / 2, [0.0] * SLOTS, 0.0, 0
        arrivals = random.Random(1)
        for _ in range(40_000):
            due += arrivals.expovariate(rate)
            start = max(due, heapq.heappop(lanes))
            heapq.heappush(lanes, start + service)
            good += start - due <= BOUND - TTFT
        low, high = (rate, high) if good >= 36_000 else (low, rate)
    return low


def test_configurations_are_searched_at_the_same_time_and_a_killed_driver_goes_on(sweep_of):
    with RayCluster(1, each=("--num-cpus=4", "--num-gpus=2")) as cluster:
        sweep = sweep_of(f"cluster.address={cluster.address}", *SEARCH).start()
        of_both = {}

        def both_have_two():
            of_both.update({(row["deployment_id"], row["trial_id"]): row["launch"] for row in sweep.committed()})
            deployments = [deployment for deployment, _ in of_both]
            return len({*deployments}) == 2 and min(map(deployments.count, deployments)) >= 2

        wait_until(both_have_two, WITHIN, "both configurations are searched at the same time")
        sweep.process.kill()
        sweep.wait()
        dead = {*of_both.values()}
        assert len(dead) == 2, "a configuration's probes share its launch"
        assert sweep.run(timeout=WITHIN) in (0, 1), sweep.said()
        claims = json.loads((sweep.out / "capacity.json").read_text())
        rows = {row["trial_id"]: row for row in sweep.rows()}
        assert {trial for _, trial in of_both} <= rows.keys()
        spans = []
        for itl, claim in zip((SLOW, FAST), claims.values(), strict=True):
            of_claim = [rows[trial] for trial in claim["trials"]]
            assert {row["launch"] for row in of_claim} == {claim["launch"]}
            assert claim["launch"] not in dead
            assert claim["probes"] == len(of_claim) >= 2, claim["lines"]
            assert claim["lower"] < 1.05 * capacity(itl) < 1.15 * (claim["upper"] or capacity(itl)), claim["lines"]
            spans.append((of_claim[0]["started_at"], of_claim[-1]["ended_at"]))
        (one, other) = spans
        assert one[0] < other[1]
        assert other[0] < one[1]
        wait_until(lambda: not sweep.marked(), 30, "no engine is left")

"""Replicas of one deployment on two nodes with addresses of their own: 16 on two times eight (invented) GPUs."""

import json
from collections import Counter

import httpx
import psutil
import pytest
import yaml

from sweep.base.config import ROOT
from sweep.base.exits import Cause, Exit
from tests.cluster.harness import Network, RayCluster, netns, network_obstacle
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("network")]
SPREAD = (
    *("cluster=ray", "hardware=gpu", "hardware.price_per_hour=2", "backend.replicas=16", "agreement=false"),
    *("load=closed", "load.concurrency=32", "workload.num_requests=64", "backend.truth_log=true"),
)
LAUNCHES_WITHIN = 240  # s


@pytest.fixture(scope="module")
def pair():
    """Two nodes of eight GPUs, and their network."""
    if obstacle := network_obstacle():
        pytest.skip(obstacle)
    with Network(2) as network, RayCluster(2, network, each=("--num-cpus=8", "--num-gpus=8")) as cluster:
        yield network, cluster


def on_node(sweep, node):
    return [pid for pid in sweep.engine_processes() if netns(pid) == netns(node.process.pid)]


def engines_of_the_gateway(sweep):
    """Return the URLs of the engines behind the running gateway; an empty list without a gateway."""
    lines = [psutil.Process(pid).cmdline() for pid in sweep.engine_processes() if psutil.pid_exists(pid)]
    return next(
        ([line[n + 1] for n, word in enumerate(line) if word == "--to"] for line in lines if "--to" in line), []
    )


def status_of(url, headers):
    return httpx.get(f"{url}/health", headers=headers, trust_env=False).status_code


def test_sixteen_replicas_run_on_two_nodes_as_one_deployment(pair, sweep_of):
    _, cluster = pair
    addresses = [node.address for node in cluster.nodes]
    sweep = sweep_of(f"cluster.address={cluster.address}", *SPREAD, "workload.output_tokens=100").start()
    wait_until(lambda: sweep.clients() and engines_of_the_gateway(sweep), LAUNCHES_WITHIN, "the trial runs", poll=0.05)
    urls = engines_of_the_gateway(sweep)
    hosts = Counter(httpx.URL(url).host for url in urls)
    (partner,) = hosts.keys() - {"127.0.0.1"}
    assert hosts == {"127.0.0.1": 8, partner: 8}
    assert partner in addresses
    relayed = next(url for url in urls if partner in url)
    assert status_of(relayed, {}) == 401
    assert status_of(relayed, {"x-sweep-token": "guessed"}) == 401
    sweep.wait(LAUNCHES_WITHIN)
    assert sweep.measured() == {"ok": 1}, sweep.said()
    (row,) = sweep.rows()
    assert (row["replicas"], row["gpu_count"], row["num_failed"]) == (16, 16, 0)
    assert row["cost_per_million_tokens"] == pytest.approx(16 * 2 / 3600 / row["output_throughput"] * 1e6)
    facts = json.loads(row["engine_facts"])
    assert Counter(facts["nodes"]) == dict.fromkeys(addresses, 8)
    assert facts["nodes"].index(partner) == 8
    assert len({tuple(command) for command in facts["replicas"]}) == 16
    assert "token" in facts["reachable_by"]
    logs = sorted(sweep.out.rglob("replica-*/truth.log"))
    asked = [log.read_text().count("measured-") for log in logs]
    assert (len(asked), sum(asked)) == (16, 64)
    assert min(asked) > 0, "the router deals the requests out to both nodes"
    wait_until(lambda: not sweep.marked(), 30, "no engine is left on either node")


def test_a_lost_node_is_a_typed_end_and_the_run_goes_on(pair, sweep_of):
    network, cluster = pair
    two = ("load.concurrency=32,33", "workload.output_tokens=200", "backend.itl.mean=0.05")
    sweep = sweep_of(f"cluster.address={cluster.address}", *SPREAD, *two, SWEEP_TIME_FACTOR="0.25").start()
    wait_until(lambda: sweep.clients() and engines_of_the_gateway(sweep), LAUNCHES_WITHIN, "the trial runs", poll=0.05)
    (host,) = {httpx.URL(url).host for url in engines_of_the_gateway(sweep)} - {"127.0.0.1"}
    index = next(index for index, node in enumerate(cluster.nodes) if node.address == host)
    network.cut(index)
    wait_until(lambda: sweep.committed(), 60, "the trial has its row")
    row = sweep.committed()[0]
    assert (row["outcome"], row["fault"]) == ("engine_crashed", "surroundings"), row["reason"]
    assert row["reason"].startswith(f"replica 9 of 16: node {host} is lost: "), row["reason"]
    assert Exit.restored(row["exit"]).cause == Cause.LOST
    wait_until(lambda: not on_node(sweep, cluster.nodes[index]), 60, "the lost node has ended its engines itself")
    network.mend(index)
    sweep.wait(LAUNCHES_WITHIN)
    assert f"node {host} is lost" in sweep.said()
    assert "Traceback" not in sweep.said(), sweep.said()
    assert sweep.measured() == {"ok": 2}, sweep.said()
    sweep.check_rows()
    wait_until(lambda: not sweep.marked(), 30, "no engine is left on either node")


@pytest.mark.engine
@pytest.mark.full
def test_two_real_engines_on_two_nodes(sweep_of, tmp_path):
    """llama.cpp on the CPU of each node, which says that it has one GPU. Its programs must be in the cache already."""
    if obstacle := network_obstacle():
        pytest.skip(obstacle)
    settings = yaml.safe_load((ROOT / "conf" / "backend" / "llamacpp.yaml").read_text())
    settings |= {"env": {"cpu": "llamacpp", "cuda": "llamacpp"}, "cuda_flags": {}}
    (tmp_path / "conf" / "backend").mkdir(parents=True)
    (tmp_path / "conf" / "backend" / "on_cpu.yaml").write_text(yaml.safe_dump(settings))
    with Network(2) as network, RayCluster(2, network, each=("--num-cpus=1", "--num-gpus=1")) as cluster:
        sweep = sweep_of()
        sweep.program += ["--config-dir", str(tmp_path / "conf")]
        load = ["load=closed", "load.concurrency=4", "workload=synthetic", "workload.num_requests=8"]
        load += ["workload.input_tokens=16", "workload.output_tokens=32", "agreement=false", "tracking=none"]
        ours = [argument for argument in sweep.arguments if argument.startswith(("out=", "cache_dir="))]
        where = ["cluster=ray", f"cluster.address={cluster.address}", "hardware=gpu", "model=tiny-llama"]
        sweep.arguments = ["backend=on_cpu", "backend.replicas=2", *where, *load, *ours]
        assert sweep.run(timeout=600) == 0, sweep.said()
        (row,) = sweep.rows()
        assert (row["outcome"], row["replicas"], row["num_failed"]) == ("ok", 2, 0), sweep.said()
        assert set(json.loads(row["engine_facts"])["nodes"]) == {node.address for node in cluster.nodes}
        wait_until(lambda: not sweep.marked(), 30, "no engine is left on either node")

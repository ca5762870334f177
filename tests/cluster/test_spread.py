"""Replicas of one deployment on two nodes with addresses of their own: 16 on two times eight (invented) GPUs."""

import contextlib
import json
import os
import signal
from collections import Counter

import httpx
import psutil
import pytest
import yaml

from sweep.base.config import ROOT
from sweep.base.exits import Cause, Exit
from sweep.node.machine import sharing
from tests.cluster.harness import Network, RayCluster, netns, network_obstacle
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("network"), pytest.mark.timeout(900)]
SPREAD = (
    *("cluster=ray", "hardware=gpu", "hardware.price_per_hour=2", "backend.replicas=16", "agreement=false"),
    *("load=closed", "load.concurrency=32", "workload.num_requests=64", "backend.truth_log=true"),
)
FOUR = (*SPREAD[:3], "backend.replicas=4", "backend.gpus=4", *SPREAD[4:])  # on as many GPUs
EIGHT_GPUS = ("--num-cpus=8", "--num-gpus=8")
ALONE = {sharing.VARIABLE: ""}  # otherwise all tests share the machine
LAUNCHES_WITHIN = 240  # s


@pytest.fixture(scope="module")
def pair():
    """Two nodes of eight GPUs, and their network."""
    if obstacle := network_obstacle():
        pytest.skip(obstacle)
    with Network(2) as network, RayCluster(2, network, environments=[ALONE] * 2, each=EIGHT_GPUS) as cluster:
        yield network, cluster


def on_node(sweep, node):
    return [pid for pid in sweep.engine_processes() if netns(pid) == netns(node.process.pid)]


def by_role(sweep, cluster):
    """Wait for the trial; return the node that leads, with the gateway, and its partner."""
    wait_until(lambda: sweep.clients() and engines_of_the_gateway(sweep), LAUNCHES_WITHIN, "the trial runs", poll=0.05)
    (partner,) = {httpx.URL(url).host for url in engines_of_the_gateway(sweep)} - {"127.0.0.1"}
    return sorted(cluster.nodes, key=lambda node: node.address == partner)


def engines_of_the_gateway(sweep):
    """Return the URLs of the engines behind the running gateway; an empty list without a gateway."""
    lines = [psutil.Process(pid).cmdline() for pid in sweep.engine_processes() if psutil.pid_exists(pid)]
    return next(
        ([line[n + 1] for n, word in enumerate(line) if word == "--to"] for line in lines if "--to" in line), []
    )


def waits_for(sweep):
    """Return whether the status says that a launch waits for another sweep's lease, here or on a partner."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        running = json.loads((sweep.out / "status.json").read_text())["running"]
        return any("waiting for process " in launch["state"] for launch in running)
    return False


def stop_now(sweep):
    for _ in range(2):
        os.killpg(sweep.process.pid, signal.SIGINT)
        wait_until(lambda: "press Ctrl-C again" in sweep.said(), 60, "the signal is heard")
    sweep.wait(60)


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
    _, partner = by_role(sweep, cluster)
    host, index = partner.address, cluster.nodes.index(partner)
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


def test_a_dead_leader_is_a_typed_end_and_its_partner_ends_its_engines(pair, sweep_of):
    network, cluster = pair
    long = ("load.concurrency=32", "workload.output_tokens=400", "backend.itl.mean=0.05")
    sweep = sweep_of(f"cluster.address={cluster.address}", *FOUR, *long, SWEEP_TIME_FACTOR="0.25").start()
    leader, partner = by_role(sweep, cluster)
    there = set(on_node(sweep, partner))
    assert len(there) >= 2
    network.cut(cluster.nodes.index(leader))
    wait_until(lambda: not there & set(sweep.marked()), 60, "the partner's engines have ended")
    wait_until(lambda: "attempt_end" in {entry["event"] for entry in sweep.ledger()}, 60, "the launch has ended")
    end = next(entry for entry in sweep.ledger() if entry["event"] == "attempt_end")
    assert end["end"].startswith(f"no heartbeat from {leader.address} for "), end
    network.mend(cluster.nodes.index(leader))
    assert sweep.wait(LAUNCHES_WITHIN) == 0, sweep.said()
    assert f"no heartbeat from {leader.address}" in sweep.said()
    assert "Traceback" not in sweep.said(), sweep.said()
    assert [row["attempt"] for row in sweep.rows()] == ["2"]
    wait_until(lambda: not sweep.marked(), 30, "no engine is left on either node")


def test_two_sweeps_never_use_the_same_gpus_of_a_partner(pair, sweep_of):
    """The other sweep has a Ray of its own on the partner, which hands out the GPUs that the first Ray handed out."""
    network, cluster = pair
    divided = (f"cluster.address={cluster.address}", *FOUR, "load.concurrency=4")
    endless, brief = ("workload.output_tokens=4000", "backend.itl.mean=0.05"), ("workload.output_tokens=8",)
    first = sweep_of(*divided, *endless).start()
    _, partner = by_role(first, cluster)
    assert on_node(first, partner)
    with RayCluster([cluster.nodes.index(partner)], network, EIGHT_GPUS, environments=[ALONE]) as one_node:
        alone = ("cluster=ray", "hardware=gpu", f"cluster.address={one_node.address}", "agreement=false")
        second = sweep_of(*alone, *endless, "load=closed", "load.concurrency=1").start()
        wait_until(lambda: waits_for(second), LAUNCHES_WITHIN, "the second sweep says what it waits for")
        assert first.engines()
        assert not second.engines()
        stop_now(first)
        wait_until(lambda: second.clients(), LAUNCHES_WITHIN, "the second trial runs")
        third = sweep_of(*divided, *brief).start()
        wait_until(lambda: waits_for(third), LAUNCHES_WITHIN, "the third sweep says what it waits for")
        assert not third.engines(), "wherever it leads: it waits for the leases of all nodes"
        stop_now(second)
        assert third.wait(LAUNCHES_WITHIN) == 0, third.said()
    assert third.measured() == {"ok": 1}, third.said()


def test_an_autoscaler_adds_a_node_only_for_the_share_that_no_node_can_take(sweep_of):
    kind = {"resources": {"CPU": 8, "GPU": 8}, "min_workers": 1, "max_workers": 6}
    with RayCluster(0, grows=kind) as cluster:
        wait_until(lambda: len(cluster.head.raylets()) == 2, LAUNCHES_WITHIN, "the first node has come")
        types = ("cluster.node_types=[{gpus: 8, cpus: 8}]", "cluster.shared_machine=growing")
        sweep = sweep_of(f"cluster.address={cluster.address}", *FOUR, *types, "workload.output_tokens=8")
        assert sweep.run(timeout=LAUNCHES_WITHIN) == 0, sweep.said()
        assert (sweep.measured(), sweep.rows()[0]["gpu_count"]) == ({"ok": 1}, 16)
        assert len(cluster.head.raylets()) == 3, "the head's, and two nodes'"


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

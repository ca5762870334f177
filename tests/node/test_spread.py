"""What the leader makes of its partners' reports; their engines and nodes are stand-ins."""

import os
import threading
import time
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest

from backends.base import Launch
from backends.launch import server
from backends.launch.relay import TOKEN_HEADER
from sweep.base.exits import Cause, Exit
from sweep.base.records import Outcome
from sweep.drive.policy import Failure, fault_of
from sweep.node.events import Beat, EngineEnd, Files, Held, HeldEngine, Leased, State
from sweep.node.machine import gpu_memory, lease
from sweep.node.spread import share as partner_side
from sweep.node.spread.partners import NodeBusy, NodeLost, NodeShare, SpreadNodes, launched_elsewhere
from sweep.node.telemetry import Gpus, Sampler
from sweep.numbers.quantities.memory import memory_of
from tests.backends.test_server import fake
from tests.support.waiting import wait_until

WORK = SimpleNamespace(deployment=SimpleNamespace(backend=fake().model_copy(update={"replicas": 4})))
NODE = SimpleNamespace(launch=Launch(model=Path("m"), served_name="m", workdir=Path("a"), gpus=("0",), cpus=(0,)))


def held(memory=5.0, **state):
    engines = (HeldEngine("http://10.0.0.2:1", ["serve"], 3.0, 0.5, True)._replace(**state),) * 2
    return Held(engines, (("gpu_memory_bytes", "GPU-x", memory),))


def is_no_state(event):
    return not isinstance(event, State | Beat)


class Scripted:
    """A partner's task that reports what it is given."""

    def __init__(self):
        self.reports, self.stopped = Queue(), False

    def events(self):
        while (report := self.reports.get()) is not None:
            if isinstance(report, Exception):
                raise report
            yield report

    def stop(self):
        self.stopped = True
        self.reports.put(None)


@pytest.fixture
def partner():
    return Scripted()


def elsewhere(partner, emit=lambda event: None):
    return launched_elsewhere(WORK, NODE, SpreadNodes(("10.0.0.1", "10.0.0.2"), lambda index, share: partner), emit)


def test_the_replicas_of_a_partner_are_engines_at_its_address(partner):
    emitted = []
    for report in (State("fetching"), Files({"log": b"1"}), held()):
        partner.reports.put(report)
    with elsewhere(partner, emitted.append) as await_engines:
        first, second = await_engines()
        assert emitted == [State("on 10.0.0.2: fetching"), Files({"log": b"1"})]
        assert (first.url, first.startup_seconds, first.cold_ttft) == ("http://10.0.0.2:1", 3.0, 0.5)
        assert [first.launch.replica, second.launch.replica] == ["replica 3 of 4", "replica 4 of 4"]
        assert (first.launch.gpus, first.launch.cpus) == ((), ()), "those of the leader are not its own"
        assert len(first.headers[TOKEN_HEADER]) > 20
        assert first.alive()
        partner.reports.put(held(ended=EngineEnd("replica 3 of 4: no luck", Exit(status=3), "log")))
        wait_until(lambda: not first.alive(), 10, "its end is reported")
        assert (first.exit_reason(), first.exit(), first.log_tail()) == (
            "replica 3 of 4: no luck",
            Exit(status=3),
            "log",
        )
    assert partner.stopped


def test_a_message_about_memory_counts_from_where_the_trial_began(partner):
    partner.reports.put(held(log_position=100, out_of_memory_at=100))
    with elsewhere(partner) as await_engines:
        engine = await_engines()[0]
        begun = engine.log_position()
        threading.Timer(0.1, partner.reports.put, [held(log_position=100, out_of_memory_at=100)]).start()
        assert not engine.ran_out_of_memory(begun), "the message is older"
        threading.Timer(0.1, partner.reports.put, [held(log_position=150, out_of_memory_at=150)]).start()
        assert engine.ran_out_of_memory(begun), "the report that is about to come is awaited"


def test_a_lost_node_ends_its_engines_and_then_the_launch(partner):
    partner.reports.put(held())

    def launch():
        with elsewhere(partner) as await_engines:
            engine = await_engines()[0]
            partner.reports.put(NodeLost("10.0.0.2", "no heartbeat for 40 s"))
            wait_until(lambda: not engine.alive(), 10, "the loss is noticed")
            assert engine.exit_reason() == "replica 3 of 4: node 10.0.0.2 is lost: no heartbeat for 40 s"
            assert engine.exit() == Exit(Cause.LOST)
            assert fault_of(Outcome.ENGINE_CRASHED, engine.exit()) == "surroundings"

    with pytest.raises(NodeLost, match=r"10\.0\.0\.2"):
        launch()


def test_a_partner_that_fails_or_is_lost_is_not_waited_for(partner):
    partner.reports.put(Failure(Outcome.OOM_LOAD, "replica 3 of 4: too large", Exit(status=1), "log"))
    partner.reports.put(None)  # its last report
    with (
        pytest.raises(server.LaunchError, match="replica 3 of 4: too large") as caught,
        elsewhere(partner) as await_engines,
    ):
        await_engines()
    assert (caught.value.outcome, caught.value.log_tail) == (Outcome.OOM_LOAD, "log")
    gone = Scripted()
    gone.reports.put(NodeLost("10.0.0.2", "died"))
    with pytest.raises(NodeLost, match="died"), elsewhere(gone) as await_engines:
        await_engines()


def test_a_partner_whose_gpus_another_sweep_leases_makes_the_launch_wait(partner):
    """No engine is launched. Two launches, each with the other's node as partner, would otherwise block each other."""
    partner.reports.put(Failure(Outcome.LAUNCH_FAILED, "GPUs of node 10.0.0.2 are leased", Exit(Cause.LEASED)))
    partner.reports.put(None)
    with pytest.raises(NodeBusy, match=r"10\.0\.0\.2"), elsewhere(partner):
        raise AssertionError("nothing may be launched here")
    assert partner.stopped


def test_the_memory_of_all_nodes_is_added_up(partner):
    partner.reports.put(held(memory=5.0))
    own = SimpleNamespace(read=lambda: [("gpu_memory_bytes", "GPU-y", 2.0)])
    with elsewhere(partner) as await_engines:
        source = Gpus((), elsewhere=(own, await_engines()[0].partner))
        label, readings = memory_of(Sampler([source], 1.0).read_once())
    assert (label, [value for _, value in readings]) == ("gpu", [7.0])


def test_a_partner_holds_its_share_until_it_is_stopped(tmp_path, monkeypatch):
    """With engines that are real processes: reported with their addresses, and gone afterwards."""
    backend = fake().model_copy(update={"replicas": 4})
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path / "attempt")
    node = SimpleNamespace(launch=launch, client_cpus=set(), environment=SimpleNamespace(versions={}))
    settings = SimpleNamespace(name="s", cluster=SimpleNamespace(shared_machine="tests"), stall_timeout=60)
    marker = f"test_spread/{time.time_ns()}"
    work = SimpleNamespace(
        deployment=SimpleNamespace(backend=backend, describe=lambda: "d"), settings=settings, marker=marker
    )
    monkeypatch.setattr(partner_side.deployment, "prepare_node", lambda *arguments: node)
    monkeypatch.setattr(partner_side, "measure_cold_start", lambda *arguments: 0.25)
    monkeypatch.setattr(gpu_memory, "wait_until_free", lambda gpus: None)
    stop = threading.Event()
    share = NodeShare(range(2, 4), "127.0.0.9", "token")
    gpus = ("GPU-of-test-spread",)
    with lease.leased(gpus, "other sweep", "other", print, lambda: False), monkeypatch.context() as at_once:
        at_once.setattr(partner_side, "LEASE_WITHIN", 0.0)
        said = list(partner_side.stream_share(work, gpus, share, stop, 5.0))
    assert said[0].text.startswith(f"waiting for process {os.getpid()} (sweep other sweep), which measures on GPU-of-")
    assert said[-1].exit == Exit(Cause.LEASED)
    stop.clear()
    monkeypatch.setattr(partner_side, "LEASE_WITHIN", 1e6)  # others may measure on this machine's CPU
    reports = partner_side.stream_share(work, (), share, stop, 5.0)
    leased, first = (report for report, _ in zip(filter(is_no_state, reports), range(2), strict=False))
    assert (type(leased), type(first)) == (Leased, Held), (leased, first)
    assert [engine.url.rpartition(":")[0] for engine in first.engines] == ["http://127.0.0.9"] * 2
    assert [engine.ended for engine in first.engines] == [None, None]
    running = server.supervisor.marked(lambda environ: environ[server.supervisor.MARKER].startswith(marker))
    assert running
    server.supervisor.send(running[:1], 9)
    ended = next(r for r in reports if isinstance(r, Held) and any(e.ended for e in r.engines))
    assert {engine.ended.reason.partition(":")[0] for engine in ended.engines if engine.ended} <= {
        "replica 3 of 4",
        "replica 4 of 4",
    }
    stop.set()
    assert not [report for report in reports if isinstance(report, Failure)], "it ends by itself"
    assert not server.supervisor.marked(lambda environ: environ[server.supervisor.MARKER].startswith(marker))

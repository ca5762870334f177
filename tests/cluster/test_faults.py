"""Whatever dies, the sweep goes on or ends with a clear word, the same command completes it, and nothing is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.cluster.harness import Network, RayCluster, kill, netns, network_obstacle, write_engine
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ray

# Three deployments, each launched once for two trials; a trial takes about two seconds.
GRID = ("+backend.itl.mean=0.02,0.021,0.022", "load.batch_size=1,2", "workload.output_tokens=24", "retry=next_run")
TRIALS = 6
EIGHT_TRIALS = ("load.batch_size=1,2", "replicates=4", "retry=next_run")
LEFT_WITHIN = 30  # s after which no engine may be left on a living node
SEES_LOSS = 60  # s


@pytest.fixture
def engine_with_child(tmp_path):
    return write_engine(tmp_path / "engine", sys.executable)


def under_way(sweep, finished=1):
    """Wait until some trials have their rows and an engine runs."""
    done = lambda: len(sweep.committed()) >= finished and sweep.engines() and sweep.clients()  # noqa: E731
    wait_until(lambda: done() or not sweep.running(), 120, "the sweep is under way", poll=0.05)
    assert sweep.running(), sweep.said()


def completes(sweep, runs=5):
    """The same command, until it has nothing left to do; every trial then has one row, which is ok."""
    for _ in range(runs):
        sweep.run()
        assert "Traceback" not in sweep.said(), sweep.said()
        if sweep.measured() == {"ok": TRIALS}:
            break
    assert sweep.measured() == {"ok": TRIALS}, sweep.said()
    sweep.check_rows()


def nothing_left(sweep, within=LEFT_WITHIN):
    took = wait_until(lambda: not sweep.marked(), within, "no engine is left")
    print(f"engines gone after {took:.1f} s")


VICTIMS = {
    "engine": lambda sweep: sweep.engines()[:1],
    "child of the engine": lambda sweep: sweep.children()[:1],
    "measuring client": lambda sweep: sweep.clients()[:1],
    "worker": lambda sweep: sweep.workers()[:1],
    "supervisor": lambda sweep: sweep.supervisors()[:1],
    "worker and all supervisors": lambda sweep: sweep.workers()[:1] + sweep.supervisors(),
}


def further(*values):
    """A case that the gate leaves out: the storms of test_chaos have it, too, or another case is nearly the same."""
    return pytest.param(*values, marks=pytest.mark.full)


ONE_AND_ALL = ("engine", "worker and all supervisors")


@pytest.mark.parametrize("victim", [name if name in ONE_AND_ALL else further(name) for name in VICTIMS])
def test_kill_9(cluster, sweep_of, engine_with_child, victim):
    sweep = sweep_of("cluster=ray", f"cluster.address={cluster.address}", *GRID, engine_with_child).start()
    under_way(sweep)
    pids = VICTIMS[victim](sweep)
    assert pids
    for pid in pids:
        kill(pid)
    status = sweep.wait()
    assert status in (0, 1), sweep.said()
    assert "Traceback" not in sweep.said(), sweep.said()
    sweep.check_rows()
    nothing_left(sweep)
    completes(sweep)
    nothing_left(sweep)


def test_kill_9_of_a_raylet(cluster, sweep_of):
    sweep = sweep_of("cluster=ray", f"cluster.address={cluster.address}", *GRID).start()
    under_way(sweep)
    host = next(e["node"] for e in sweep.ledger() if e["event"] == "attempt_placed")
    node = next(node for node in cluster.nodes if node.address == host)
    node.raylet().kill()
    took = wait_until(lambda: "lost simulated" in sweep.said(), SEES_LOSS, "the loss is noticed")
    print(f"loss noticed after {took:.1f} s")
    assert sweep.wait() in (0, 1), sweep.said()
    sweep.check_rows()
    nothing_left(sweep)
    ends = [e["end"] for e in sweep.ledger() if e["event"] == "attempt_end"]
    assert len(ends) == 4, "three launches, one of them twice"
    assert sum(end != "done" for end in ends) == 1
    completes(sweep)


@pytest.mark.parametrize("victim", ["raylet", further("gcs_server")])
def test_ray_dies_under_the_driver(sweep_of, victim):
    """Without its own raylet, or Ray's head, a driver can start nothing: it says so and ends."""
    sweep = sweep_of("cluster=local", *GRID).start()
    under_way(sweep)
    below = psutil.Process(sweep.process.pid).children(recursive=True)
    next(process for process in below if process.name() == victim).kill()
    begin = time.monotonic()
    assert sweep.wait(SEES_LOSS) != 0, sweep.said()
    print(f"ended after {time.monotonic() - begin:.1f} s, status {sweep.process.returncode}: {sweep.said()[-300:]}")
    assert "Traceback" not in sweep.said(), sweep.said()
    nothing_left(sweep)
    completes(sweep)


@pytest.mark.xdist_group("network")
def test_a_node_that_falls_silent(sweep_of):
    """Its link is cut: it is given up within a minute, and by then has ended its engine itself."""
    if obstacle := network_obstacle():
        pytest.skip(obstacle)
    long = ("workload.output_tokens=250", "backend.itl.mean=0.02,0.021", "load.batch_size=1", "workload.num_requests=4")
    with Network(2) as network, RayCluster(2, network) as cluster:
        sweep = sweep_of("cluster=ray", f"cluster.address={cluster.address}", *long).start()
        wait_until(lambda: len(sweep.engines()) == 2 and len(sweep.clients()) == 2, 120, "both deployments run")
        there = [pid for pid in sweep.marked() if netns(pid) == netns(cluster.nodes[0].process.pid)]
        assert there
        network.cut(0)
        begin = time.monotonic()
        wait_until(lambda: "lost simulated" in sweep.said(), SEES_LOSS, "the loss is noticed")
        print(f"loss noticed after {time.monotonic() - begin:.1f} s: {sweep.ledger()[-1]}")
        wait_until(lambda: not set(there) & set(sweep.marked()), begin + 60 - time.monotonic(), "its engine is gone")
        print(f"engine of the node that was cut off gone after {time.monotonic() - begin:.1f} s")
        assert sweep.wait(300) in (0, 1), sweep.said()
        sweep.check_rows()
        assert "Traceback" not in sweep.said(), sweep.said()
        attempts = {row["deployment_id"]: row["attempt"] for row in sweep.rows()}
        assert sorted(attempts.values()) == ["1", "2"], "one deployment was retried, elsewhere"
        nodes = [entry["node"] for entry in sweep.ledger() if entry["event"] == "attempt_placed"]
        assert nodes[-1] == cluster.nodes[1].address
        nothing_left(sweep)


@pytest.mark.parametrize("where", ["ray", further("local")])
def test_kill_9_of_the_driver(cluster, sweep_of, where):
    address = [f"cluster.address={cluster.address}"] if where == "ray" else []
    sweep = sweep_of(f"cluster={where}", *address, *GRID).start()
    under_way(sweep)
    begun = [entry["row"]["trial_id"] for entry in sweep.ledger() if entry["event"] == "trial"]
    sweep.process.kill()
    sweep.process.wait()
    nothing_left(sweep)
    completes(sweep)
    again = [row["trial_id"] for row in sweep.committed()]
    assert all(again.count(trial_id) == 1 for trial_id in begun), "what had its row was not run again"
    nothing_left(sweep)


def test_a_frozen_driver_goes_on_with_a_healthy_ray(sweep_of):
    """As when its machine is moved for a minute, at a quarter of the time: the tasks hear nothing and end themselves.

    Ray is healthy, so the driver asks it again before it judges, and starts the lost deployments anew.
    """
    sweep = sweep_of("cluster=local", *EIGHT_TRIALS, "workload.output_tokens=48", SWEEP_TIME_FACTOR="0.25").start()
    under_way(sweep)
    os.kill(sweep.process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: not sweep.engines(), 60, "the tasks have given the driver up")
        time.sleep(3)  # and its own time-out of 10 s is over, too
    finally:
        os.kill(sweep.process.pid, signal.SIGCONT)
    status = sweep.wait()
    assert "has not answered" not in sweep.said(), sweep.said()
    assert "lost simulated" in sweep.said(), sweep.said()
    assert sweep.measured() == {"ok": 8}, sweep.said()
    assert status == (0 if set(sweep.outcomes()) == {"ok"} else 1)
    nothing_left(sweep)


def test_the_command_comes_back_at_once_after_a_kill_9(cluster, sweep_of):
    """The tasks of the dead driver still run when the new one begins: it clears them away."""
    sweep = sweep_of("cluster=ray", f"cluster.address={cluster.address}", *GRID).start()
    under_way(sweep)
    sweep.process.kill()
    sweep.process.wait()
    completes(sweep)
    attempts = {row["trial_id"]: row["attempt"] for row in sweep.committed()}
    assert len(attempts) == len(sweep.committed()) == TRIALS, "no trial has a row of two attempts"
    nothing_left(sweep)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("ray", signal.SIGINT),
        ("inline", signal.SIGTERM),
        further("local", signal.SIGTERM),
        further("ray", signal.SIGTERM),
        further("local", signal.SIGINT),
        further("inline", signal.SIGINT),
    ],
)
def test_one_signal_ends_the_sweep_after_the_trials_that_run(cluster, sweep_of, where, number):
    address = [f"cluster.address={cluster.address}"] if where == "ray" else []
    sweep = sweep_of(f"cluster={where}", *address, *GRID).start()
    under_way(sweep)
    before = len(sweep.committed())
    os.killpg(sweep.process.pid, number)  # as a terminal does: everybody in the group hears Ctrl-C
    assert sweep.wait(60) == 130, sweep.said()
    assert "press Ctrl-C again to stop immediately" in sweep.said()
    assert "Traceback" not in sweep.said(), sweep.said()
    assert before <= len(sweep.committed()) <= before + 2 * len(cluster.nodes)
    assert set(sweep.measured()) == {"ok"}, "what ran was finished"
    nothing_left(sweep, 10)
    completes(sweep)


@pytest.mark.parametrize("where", ["ray", further("local"), "inline"])
def test_a_second_signal_ends_it_now(cluster, sweep_of, where):
    address = [f"cluster.address={cluster.address}"] if where == "ray" else []
    long = ("workload.output_tokens=2000", "backend.itl.mean=0.02", "load.batch_size=1")
    sweep = sweep_of(f"cluster={where}", *address, *long).start()
    under_way(sweep, finished=0)
    os.killpg(sweep.process.pid, signal.SIGINT)
    time.sleep(2)
    assert sweep.running()
    os.killpg(sweep.process.pid, signal.SIGINT)
    begin = time.monotonic()
    assert sweep.wait(30) == 130, sweep.said()
    print(f"ended after {time.monotonic() - begin:.1f} s")
    assert "Traceback" not in sweep.said(), sweep.said()
    assert not sweep.committed()
    nothing_left(sweep, 15)


def test_started_twice_at_once(cluster, sweep_of):
    sweep = sweep_of("cluster=inline", *GRID).start()
    under_way(sweep)
    first = sweep.process
    assert sweep.run() == 2
    assert f"another sweep is running with this out (process {first.pid} on" in sweep.said()
    assert first.wait(120) in (0, 1)
    assert sweep.measured() == {"ok": TRIALS}


def test_disk_full(sweep_of, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100m", "tmpfs", disk], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        sweep = sweep_of("cluster=local", *GRID)
        sweep.arguments.append(f"out={disk / 'out'}")
        sweep.out = disk / "out"
        sweep.start()
        under_way(sweep)
        with (disk / "filler").open("wb") as filler:
            try:
                while True:
                    filler.write(os.urandom(1 << 20))
            except OSError:
                pass
        assert sweep.wait(60) == 75
        assert "stopped: No space left on device" in sweep.said()
        assert "Traceback" not in sweep.said(), sweep.said()
        nothing_left(sweep)
        (disk / "filler").unlink()
        completes(sweep)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_engine_that_hangs(sweep_of):
    """Accepts and never answers: the trial ends, and an engine that does so again and again is not tried forever."""
    hangs = ("+backend.faults={hang: 1.0}", "stall_timeout=3", *EIGHT_TRIALS)
    sweep = sweep_of("cluster=inline", *hangs)
    assert sweep.run() == 1, sweep.said()
    assert sweep.outcomes() == {"hung": 8}
    assert sum("the engine failed repeatedly" in row["reason"] for row in sweep.rows()) == 5, "after three launches"
    sweep.check_rows()
    nothing_left(sweep, 5)


def test_an_engine_that_dies_at_one_launch_of_several(sweep_of, tmp_path):
    """The second launch fails, the third does not; a launch for each replicate."""
    count = tmp_path / "launches"
    script = tmp_path / "python"
    dies = '[ -n "$SWEEP_MARKER" ] && echo >> {0} && [ $(wc -l < {0}) = 2 ] && echo "Error: bad luck" && exit 1'
    script.write_text(f'#!/bin/bash\n{dies.format(count)}\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    points = ("relaunch=per_replicate", "replicates=3", "load.batch_size=1,2", "retry=next_run")
    sweep = sweep_of("cluster=inline", *points, f"backend.env.python={script}")
    assert sweep.run() in (0, 1), sweep.said()
    assert sweep.measured() == {"ok": 6}
    assert len(count.read_text().splitlines()) == 4, "three replicates, and the launch that failed"


def test_a_deadline_starts_nothing_that_cannot_end_by_then(sweep_of):
    in_30_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 30))
    long = ("workload.output_tokens=50", "backend.itl.mean=0.02", "load.batch_size=1", "replicates=5")
    sweep = sweep_of("cluster=inline", *long)
    assert sweep.run(f"deadline='{in_30_s}'") == 75, sweep.said()
    assert "not finished; run the same command again to continue" in sweep.said()
    done = sweep.committed()
    assert 0 < len(done) < 5
    begun = len(done)
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 6))
    assert sweep.run(f"deadline='{soon}'") == 75
    assert "would end after the deadline" in sweep.said(), "now it is known how long these trials take"
    assert len(sweep.committed()) == begun
    assert sweep.run() in (0, 1)
    assert sweep.measured() == {"ok": 5}


def test_the_engine_forgets_prompts_between_trials_where_it_can(sweep_of):
    """The simulated engine has no cache: its health page stands in for the path that empties one.

    A trial whose client was too slow on a busy machine is not retried: its row would be of a launch of its own.
    """
    for path, told in (("/health", True), ("/no/such/page", False)):
        sweep = sweep_of("cluster=inline", "load.batch_size=1,2", "retry=next_run", f"+backend.reset_paths=[{path}]")
        assert sweep.run() in (0, 1), sweep.said()
        first, second = sorted(sweep.rows(), key=lambda row: row["started_at"])
        assert first["caches_reset"] is None, "nothing to forget after the launch"
        assert second["caches_reset"] is told

"""Several engines of one kind as one deployment: planned, placed, launched, measured, priced and ended as one."""

import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from backends.base import Launch
from backends.launch import server, supervisor
from backends.launch.replicas import replica_launches
from sweep.__main__ import main
from sweep.base.config import ConfigError, build
from sweep.base.options import load_option
from sweep.disk.run_files import RunPaths, read_trials
from sweep.node import deployment
from sweep.node.telemetry import EngineMetrics
from tests.backends.test_server import Fake, fake, living
from tests.plan.test_plan import planned
from tests.support.http_stub import page, serving

QUICK = [
    *("cluster=inline", "tracking=none", "backend=simulated", "model=tiny-llama", "agreement=false"),
    *("workload=qa", "workload.num_requests=24", "workload.output_tokens=6", "load=closed", "load.concurrency=4"),
    *("backend.ttft={mean: 0.005}", "backend.itl={mean: 0.01}", "backend.truth_log=true", "attempts=1"),
]


def rows_of(tmp_path, *arguments):
    main([*QUICK, *arguments, f"out={tmp_path / 'out'}"])
    return read_trials(RunPaths(tmp_path / "out").trials)


def attempt_of(tmp_path, row):
    return RunPaths(tmp_path / "out").attempt(row["deployment_id"], row["attempt"])


@pytest.mark.slow
def test_two_replicas_are_one_deployment_behind_the_router(tmp_path):
    (row,) = rows_of(tmp_path, "backend.replicas=2")
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    assert row["replicas"] == 2
    facts, attempt = json.loads(row["engine_facts"]), attempt_of(tmp_path, row)
    assert len({tuple(command) for command in facts["replicas"]}) == 2
    assert facts["routing"] == "least_busy"
    asked = [(attempt / f"replica-{number}" / "truth.log").read_text().count("measured-") for number in (1, 2)]
    assert sum(asked) == 24
    assert min(asked) >= 6, "the router deals the requests out"
    decisions = (attempt / "gateway" / "decisions.jsonl").read_text()
    assert decisions.count("measured-") == 24
    assert not supervisor.marked(lambda environ: row["deployment_id"] in environ[supervisor.MARKER])


@pytest.mark.slow
def test_a_replica_that_dies_is_the_deployments_failure(tmp_path):
    over = threading.Event()

    def is_second(environ):
        return environ[supervisor.MARKER].endswith("/replica-2") and supervisor.SUPERVISOR not in environ

    def kill_the_second():
        while not over.wait(0.1):
            if list(tmp_path.rglob("decisions.jsonl")):  # the gateway logs a request when it is over: the trial runs
                supervisor.send(supervisor.marked(is_second), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    try:
        (row,) = rows_of(tmp_path, "backend.replicas=2", "workload.num_requests=2000")
    finally:
        over.set()  # or it would kill the second replicas of the tests behind this one
        killer.join()
    assert row["outcome"] in ("engine_crashed", "launch_failed"), "the second try finds the killer early"
    assert row["reason"].startswith("replica 2 of 2: ")
    assert "killed by signal 9" in row["reason"]
    assert not supervisor.marked(lambda environ: row["deployment_id"] in environ[supervisor.MARKER])


@pytest.mark.slow
def test_a_replica_that_cannot_be_launched_is_named(tmp_path):
    (row,) = rows_of(tmp_path, "backend.replicas=3", "backend.die_at_launch=out_of_memory")
    assert row["outcome"] == "oom_load"
    assert row["reason"].startswith("replica 1 of 3: ")


@pytest.mark.slow
def test_replicas_start_side_by_side(tmp_path):
    marker = f"test/{os.getpid()}/replicas"
    launches = replica_launches(Launch(model=tmp_path, served_name="m", workdir=tmp_path / "attempt"), 2)
    with server.running_together(fake("--delay", "1"), launches, marker=marker) as engines:
        began = [psutil.Process(engine.pid).create_time() for engine in engines]
        assert abs(began[0] - began[1]) < 1.0, "the second does not wait until the first is ready"
        assert len({engine.url for engine in engines}) == 2
    assert not living(f"{marker}/replica-1")
    assert not living(f"{marker}/replica-2")


def test_the_launch_ends_when_one_dies_while_another_starts(tmp_path):
    marker = f"test/{os.getpid()}/replicas"
    launches = replica_launches(Launch(model=tmp_path, served_name="m", workdir=tmp_path / "attempt"), 2)

    class OneDies(Fake):
        def command(self, launch):
            second = launch.replica == "replica 2 of 2"
            return [*super().command(launch), *(["--say", "no luck", "--exit", "3"] if second else ["--delay", "60"])]

    with (
        pytest.raises(server.LaunchError) as caught,
        server.running_together(OneDies(name="fake", launch_timeout=50), launches, marker=marker),
    ):
        pytest.fail("it must not become ready")
    assert caught.value.reason.startswith("replica 2 of 2: no luck"), "before the first has timed out"
    assert not living(f"{marker}/replica-1")


def test_gpus_and_cores_are_dealt_out():
    launch = Launch(
        model=Path("m"), served_name="m", workdir=Path("a"), gpus=("0", "1", "2", "3"), cpus=(0, 1, 2, 3, 4), threads=5
    )
    first, second = replica_launches(launch, 2)
    assert (first.gpus, second.gpus) == (("0", "1"), ("2", "3"))
    assert (first.cpus, second.cpus, first.threads) == ((0, 1), (2, 3), 2)
    assert (first.workdir, second.workdir) == (Path("a/replica-1"), Path("a/replica-2"))
    crowded = replica_launches(server.replace(launch, cpus=(7,), threads=1), 2)
    assert [(each.cpus, each.threads) for each in crowded] == [((7,), 1)] * 2, "all of them share the only core"
    assert replica_launches(launch, 1) == [launch]


@pytest.mark.parametrize(
    ("cores", "bound"), [((4, 5, 6, 7), "4,5|6,7"), ((4,), "4|4")], ids=["a part each", "fewer cores than ranks"]
)
def test_the_data_parallel_ranks_of_a_vllm_on_a_cpu_have_cores_each(cores, bound):
    backend = build({**load_option("backend", "vllm"), "flags": {"data_parallel_size": 2}}, "backend")
    launch = Launch(model=Path("m"), served_name="m", workdir=Path("a"), cpus=cores)
    assert backend.environment(launch)["VLLM_CPU_OMP_THREADS_BIND"] == bound, "vLLM wants a list for each rank"


def test_a_deployment_takes_and_pays_the_gpus_of_all_replicas():
    words = ("backend=vllm", "backend.gpus=2", "backend.replicas=1,2", "backend.flags.data-parallel-size=1,3")
    plan = planned(*words, hardware="l4")
    counts = {
        (each.backend.replicas, each.backend.flags["data-parallel-size"]): each.gpu_count for each in plan.deployments
    }
    assert counts == {(1, 1): 2, (1, 3): 6, (2, 1): 4, (2, 3): 12}
    assert {each.gateway and each.gateway.name for each in plan.deployments if each.backend.replicas == 2} == {"router"}
    assert {each.gateway for each in plan.deployments if each.backend.replicas == 1} == {None}
    assert {each.gpu_count for each in planned(*words).deployments} == {0}, "on a CPU"


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ({"dp-size": 2, "pipeline_parallel_size": 3}, 12),
        ({"dp-size": 2, "pipeline_parallel_size": 3, "enable_dp_attention": True}, 6),
        ({"data-parallel-size": 2, "enable-dp-attention": False}, 4),
    ],
)
def test_the_gpus_of_an_sglang_follow_its_flags_however_they_are_spelled(flags, gpus):
    assert build({**load_option("backend", "sglang"), "gpus": 2, "flags": flags}, "backend").gpu_count == gpus


def test_a_dry_run_says_what_is_placed(tmp_path, capsys):
    cluster = ("cluster=ray", "cluster.simulate={nodes: 1, gpus: 2, cpus: 8}", "hardware=l4", "dry_run=true")
    line = [*QUICK[:-1], *cluster, "backend.gpus=2", "backend.replicas=2", f"out={tmp_path / 'out'}"]
    main(line)
    assert "needs 4 L4 GPUs on one node, or 2 on each of 2 nodes, and only 1 has that many: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backend=transformers", "backend.gpus=2"], "backend.gpus=2: transformers uses only one GPU; expected 1"),
        (["backend=ctranslate2", "backend.gpus=2"], "backend.gpus=2: ctranslate2 uses only one GPU; expected 1"),
        (["backend=vllm_offline", "backend.replicas=2"], "backend.replicas=2: vllm_offline is timed in-process"),
        (
            ["backend=vllm_offline", "backend.flags.data_parallel_size=2"],
            r"data_parallel_size=2: the in-process server has one engine; expected 1 \(for several ranks behind one "
            r"URL: backend=vllm backend.flags.data-parallel-size=2\)",
        ),
        (
            ["backend=vllm", "backend.replicas=2", "backend.port=80"],
            "backend.replicas=2: they cannot share backend.port=80",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(words, said):
    with pytest.raises(ConfigError, match=said) as caught:
        planned(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_shares_are_averaged_and_all_else_is_added_up():
    names = {"kv_cache_usage": "use", "requests_running": "running", "ratio": "a / b"}
    first, second = "use 0.2\nrunning 3\na 1\nb 2\n", "use 0.6\nrunning 4\na 5\nb 6\n"
    with serving(page("/metrics", first)) as one, serving(page("/metrics", second)) as other:
        metrics = EngineMetrics([f"{one}/metrics", f"{other}/metrics"], names)
        read = {series: value for series, _, value in metrics.read()}
    assert read == {"kv_cache_usage": pytest.approx(0.4), "requests_running": 7, "ratio": pytest.approx(6 / 8)}


def test_the_caches_of_every_replica_are_reset(tmp_path, monkeypatch):
    backend, asked = SimpleNamespace(launches=True, resets=("/forget",)), []
    engines = [
        SimpleNamespace(backend=backend, url=f"http://{n}", headers={}, log=tmp_path / f"{n}.log") for n in (1, 2)
    ]
    monkeypatch.setattr(deployment, "_reset", lambda url, headers: asked.append(url))
    assert deployment._reset_caches(engines, lambda event: None) is True
    assert asked == ["http://1/forget", "http://2/forget"]
    monkeypatch.setattr(deployment, "_reset", lambda url, headers: "busy" if "2" in url else None)
    assert deployment._reset_caches(engines, lambda event: None) is False
    assert "busy" in engines[1].log.read_text()


def test_an_engine_of_several_nodes_is_refused_in_one_line(tmp_path, capsys):
    cluster = ("cluster=ray", "cluster.simulate={nodes: 2, gpus: 8, cpus: 64}", "hardware=l4", "dry_run=true")
    line = [*QUICK[:-1], *cluster, f"out={tmp_path / 'out'}"]
    main([*line, "backend.gpus=16"])
    assert "needs 16 L4 GPUs on one node and no node has more than 8: add one, or lower backend.gpus\n" in (
        capsys.readouterr().out
    )
    main([*line, "backend.replicas=16"])
    printed = capsys.readouterr().out
    assert "needs 16" not in printed
    assert "1 to run" in printed

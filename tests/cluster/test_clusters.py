"""Clusters as docs/clusters.md has them: their files, a node without the results folder, and sweeps as Ray jobs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from backends.launch.server import free_port
from sweep.base.config import ROOT, cache_directory
from sweep.cluster import preemption
from tests.cluster.harness import ENVIRONMENT, SUBNET, Node, RayCluster, Sweep
from tests.support.metadata_stub import metadata_server
from tests.support.results import committed_rows
from tests.support.waiting import wait_until

FILES = ROOT / "scripts" / "cluster"


def test_the_launcher_accepts_its_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((FILES / "gcp-l4.yaml").read_text()))
    validate_config(config)
    assert {kind["node_config"]["machineType"] for kind in config["available_node_types"].values()} >= {"g2-standard-8"}


def test_the_rayjob_says_where_its_results_stay():
    job = yaml.safe_load((FILES / "kuberay-rayjob.yaml").read_text())
    assert job["kind"] == "RayJob"
    assert " out=s3://" in job["spec"]["entrypoint"]


def test_the_rayjobs_token_is_kuberays_own():
    """One that only head and workers were given would leave the pod that submits the job without."""
    job = yaml.safe_load((FILES / "kuberay-rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH" not in (FILES / "kuberay-rayjob.yaml").read_text()


@pytest.mark.parametrize("script", ["node", "slurm.sbatch"])
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(FILES / script)], check=True)


def slurm_stubs(folder, status):
    """Stubs of Slurm's commands, with an srun that takes its time, and a driver that ends with this status."""
    nap = f"{shutil.which('sleep')} 0.2"
    log = "results/slurm/7/ray-*.log"
    commands = {
        "scontrol": (
            f"case $2 in hostnames) echo a; {nap}; echo b;;"  # nobody may hang up on it meanwhile
            " node) echo NodeName=a NodeAddr=10.0.0.1 State=IDLE;; *) echo $* >> requeued;; esac"
        ),
        "squeue": "echo 2030-01-01T00:00:00",
        "sleep": f"exec {nap}",
        "srun": (
            "while [[ $1 == --* ]]; do [[ $1 == --output=* ]] && log=${1#*=}; shift; done\n"
            f'case "$*" in *\\ join\\ *) cat {log} >> before-join;; esac\n'
            f'{nap}; echo "Ray runtime started." >> "$log"; until [ -e ended ]; do {nap}; done'
        ),
    }
    scripts = folder / "scripts" / "cluster"
    scripts.mkdir(parents=True)
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    driver = f"cat {log} > before-plan; echo $SLURM_JOB_END_TIME > end; exit {status}"
    (scripts / "node").write_text(f"#!/bin/bash\n{driver}\n")
    (scripts / "node").chmod(0o755)


def slurm_job(folder, **variables):
    """Run the job among the stubs; return its exit status."""
    slurm = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", **variables}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment |= slurm | {"PATH": f"{folder}:{os.environ['PATH']}", "RAY_AUTH_TOKEN": "0" * 64, "TZ": "UTC"}
    try:
        return subprocess.run(["bash", FILES / "slurm.sbatch"], env=environment, check=False, timeout=60).returncode
    finally:
        (folder / "ended").touch()


def test_slurm_starts_the_driver_when_all_nodes_have_joined(tmp_path):
    """The head is there before anyone joins it, all have joined before the plan, and the job's end is the driver's."""
    slurm_stubs(tmp_path, 0)
    assert slurm_job(tmp_path) == 0
    assert (tmp_path / "before-join").read_text().count("started") >= 1
    assert (tmp_path / "before-plan").read_text().count("started") == 3
    assert (tmp_path / "end").read_text() == "1893456000\n"
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
def test_a_slurm_job_that_is_not_finished_is_requeued(tmp_path):
    slurm_stubs(tmp_path, 75)
    assert slurm_job(tmp_path) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert slurm_job(tmp_path, SLURM_RESTART_COUNT="50") == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "no more"


def test_a_node_without_a_token_does_not_start(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    environment |= {"SWEEP_ENVIRONMENT": str(tmp_path / "none"), "SWEEP_PYTHON": sys.executable}
    result = subprocess.run([FILES / "node", "head"], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2
    assert "error: RAY_AUTH_TOKEN" in result.stderr


@pytest.fixture
def lone_head():
    with RayCluster(nodes=0) as cluster:
        yield cluster


@pytest.mark.ray
def test_a_node_without_the_results_folder_sends_its_files(lone_head, tmp_path, monkeypatch):
    """A mount namespace in which the folder is another one: as on a machine without the shared disk."""
    hide = ["unshare", "--mount", "bash", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "_"]
    if subprocess.run([*hide, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a mount namespace")
    joins = [f"--address={lone_head.address}", "--num-cpus=1"]
    lone_head.nodes.append(Node(lone_head, f"{SUBNET}.2", joins, hide))
    lone_head.wait()
    cache = Path(f"{tmp_path}-cache")
    try:
        sweep = Sweep(tmp_path / "out", *_on(lone_head.address), "load.batch_size=1,2", cache=cache)
        assert sweep.run() == 0, sweep.said()
        sweep.check_rows()
        assert sweep.outcomes() == {"ok": 2}
        for row in sweep.rows():
            attempt = sweep.out / "deployments" / row["deployment_id"] / row["attempt"]
            assert (attempt / "engine.log").stat().st_size
            assert {path.name for path in (attempt / row["trial_id"]).iterdir()} == {
                *("requests.parquet", "telemetry.parquet", "trial.parquet")
            }
        assert not list((cache / "outbox").rglob("*.parquet")), "nothing is left on the node"
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@pytest.mark.ray
def test_a_spot_machine_with_its_notice_is_left_at_once(lone_head, tmp_path):
    """Its deployment goes on elsewhere before the machine is gone, and the loss is named."""
    with metadata_server() as metadata:
        joins = [f"--address={lone_head.address}", "--num-cpus=1"]
        spot = ["env", f"{preemption.METADATA_HOST}={metadata.host}"]
        lone_head.nodes = [Node(lone_head, f"{SUBNET}.2", joins, []), Node(lone_head, f"{SUBNET}.3", joins, spot)]
        lone_head.wait()
        grid = ("backend.itl.mean=0.05,0.055", "load.batch_size=1,2", "backend.ttft.mean=0.5")
        cache = cache_directory(os.environ.get("SWEEP_TEST_CACHE"))
        sweep = Sweep(tmp_path / "out", *_on(lone_head.address), *grid, cache=cache).start()
        wait_until(lambda: metadata.asked.is_set() or not sweep.running(), 120, "the spot machine measures")
        metadata.preempted.set()
        assert sweep.wait() == 0, sweep.said()
    assert f"{SUBNET}.3: the machine is about to be taken away" in sweep.said()
    assert sweep.measured() == {"ok": 4}
    placed = [entry["node"] for entry in sweep.ledger() if entry["event"] == "attempt_placed"]
    assert placed.count(f"{SUBNET}.3") == 1, "nothing more is started there"


def _on(address):
    return ("cluster=ray", f"cluster.address={address}")


@pytest.mark.ray
def test_a_sweep_as_a_ray_job(tmp_path):
    """`scripts/cluster/node` makes the cluster; a relative out is refused, an absolute one is kept."""
    temporary = Path("/tmp") / f"rj{os.getpid()}"  # short: the names of sockets have a limit
    port, dashboard = free_port(), free_port()
    environment = os.environ | ENVIRONMENT | {"RAY_PORT": str(port), "SWEEP_PYTHON": sys.executable}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "SWEEP_ENVIRONMENT": "none"}

    def start(name, *arguments):
        options = (f"--temp-dir={temporary / name}", f"--dashboard-agent-listen-port={free_port()}", "--block")
        log = (tmp_path / f"{name}.log").open("wb")
        command = [FILES / "node", *arguments, *options, "--object-store-memory=100000000"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_until(lambda: b"Ray runtime started" in (tmp_path / f"{name}.log").read_bytes(), 90, name)
        return process

    def submit(*arguments):
        address = f"--address=http://127.0.0.1:{dashboard}"
        job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", address, "--working-dir", str(ROOT), "--"]
        sweep = [sys.executable, "-m", "sweep", "backend=simulated", "cluster=ray", "tracking=none"]
        few = ["workload.num_requests=4", "workload.output_tokens=8", f"cache_dir={tmp_path / 'cache'}"]
        command = [*job, *sweep, *few, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def refused():
        result = submit()
        assert result.returncode
        return "a Ray job's folder is deleted with the job" in result.stdout + result.stderr

    nodes = []
    try:
        nodes.append(start("h", "head", "--node-ip-address=127.0.0.31", f"--dashboard-port={dashboard}"))
        nodes.append(start("n", "join", f"127.0.0.31:{port}", "--node-ip-address=127.0.0.32", "--num-cpus=1"))
        wait_until(refused, 120, "a refusal of the relative out", poll=2)  # at first there is no agent for jobs
        result = submit(f"out={tmp_path / 'out'}")
        assert result.returncode == 0, result.stdout + result.stderr
        assert [row["outcome"] for row in committed_rows(tmp_path / "out" / "ledger.jsonl")] == ["ok"]
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.parametrize("words", [[], ["join"], ["join", "--block"], ["nope"]])
def test_a_node_says_at_once_how_it_is_called(words):
    result = subprocess.run([FILES / "node", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage: scripts/cluster/node" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_example_environment_keeps_what_is_exported():
    program = f"set -a; . {FILES / 'environment.example'}; echo $RAY_AUTH_TOKEN $HF_TOKEN"
    environment = os.environ | {"RAY_AUTH_TOKEN": "a", "HF_TOKEN": "b"}
    assert subprocess.check_output(["bash", "-c", program], env=environment, text=True) == "a b\n"

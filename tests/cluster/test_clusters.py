"""Clusters as docs/clusters.md has them: their files, a node without the results folder, and sweeps as Ray jobs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweep.config import ROOT
from tests.cluster.harness import ENVIRONMENT, Node, RayCluster, Sweep, free_port, wait_until

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


def test_slurm_starts_the_driver_when_all_nodes_have_joined(tmp_path):
    """With an srun that takes its time: the head is there before anyone joins it, all have joined before the plan."""
    commands = {
        "scontrol": "echo a; sleep; echo b",  # nobody may hang up on it meanwhile
        "hostname": "echo 10.0.0.1",
        "sleep": f"exec {shutil.which('sleep')} 0.2",
        "srun": (
            "while [[ $1 == --* ]]; do [[ $1 == --output=* ]] && log=${1#*=}; shift; done\n"
            'case "$*" in hostname*) exec hostname;; *head*) n=1;; *) n=2; cat sweep-7-ray.log >> before-join;; esac\n'
            'for _ in $(seq $n); do sleep; sleep; echo "Ray runtime started." >> "$log"; done'
        ),
    }
    folder = tmp_path / "scripts" / "cluster"
    folder.mkdir(parents=True)
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (folder / "node").write_text("#!/bin/bash\ncat sweep-7-ray.log > before-plan\n")
    (folder / "node").chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_AUTH_TOKEN": "0" * 64}
    subprocess.run(["bash", FILES / "slurm.sbatch"], env=environment, check=True, timeout=60)
    assert (tmp_path / "before-join").read_text().count("started") == 1
    assert (tmp_path / "before-plan").read_text().count("started") == 3


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
    lone_head.nodes.append(Node(lone_head, "127.0.0.2", joins, hide))
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
        rows = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
        assert [entry["row"]["outcome"] for entry in rows if entry["event"] == "trial"] == ["ok"]
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

"""Two real engines behind the router as one deployment, through the whole command."""

import json
import re

import pytest

from backends.launch import supervisor
from sweep.__main__ import main
from sweep.disk.run_files import RunPaths, read_trials
from tests.engines.conftest import CACHE, PLATFORM

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.mark.skipif(PLATFORM != "cpu", reason="on GPUs it takes two of them")
def test_two_vllm_replicas_on_a_cpu_are_one_deployment(tmp_path):
    line = [
        *("cluster=inline", "tracking=none", "model=tiny-llama", "backend=vllm", "backend.replicas=2"),
        *("agreement=false", f"cache_dir={CACHE}", f"out={tmp_path / 'out'}", "backend.flags.max-num-seqs=4"),
        # With its access log each engine's own log says what it was asked.
        *("backend.flags.disable-uvicorn-access-log=false", "gateway=router", "gateway.routing=round_robin"),
        *("workload=qa", "workload.num_requests=16", "workload.output_tokens=16", "load=closed", "load.concurrency=4"),
    ]
    main(line)
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    assert (row["replicas"], row["num_failed"], row["output_tokens"]) == (2, 0, 16 * 16)
    assert row["caches_reset"] is None, "both are fresh from their launch"
    attempt = RunPaths(tmp_path / "out").attempt(row["deployment_id"], row["attempt"])
    logs = [(attempt / f"replica-{number}" / "engine.log").read_text() for number in (1, 2)]
    asked = [log.count('"POST /v1/completions') for log in logs]
    # Its warm-up and the first answer after the launch are asked for as well.
    assert min(asked) >= 8, asked
    facts = json.loads(row["engine_facts"])
    ports = {command[command.index("--port") + 1] for command in facts["replicas"]}
    assert len(ports) == 2
    assert not supervisor.marked(lambda environ: row["deployment_id"] in environ[supervisor.MARKER])


@pytest.mark.full
@pytest.mark.skipif(PLATFORM != "cpu", reason="on GPUs it takes two of them")
def test_two_data_parallel_ranks_of_a_vllm_on_a_cpu_are_one_deployment(tmp_path):
    line = [
        *("cluster=inline", "tracking=none", "model=tiny-llama", "backend=vllm", "backend.flags.data-parallel-size=2"),
        *("agreement=false", f"cache_dir={CACHE}", f"out={tmp_path / 'out'}", "backend.flags.max-num-seqs=4"),
        *("workload=qa", "workload.num_requests=16", "workload.output_tokens=16", "load=closed", "load.concurrency=4"),
    ]
    main(line)
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    assert (row["replicas"], row["num_failed"], row["output_tokens"]) == (1, 0, 16 * 16)
    attempt = RunPaths(tmp_path / "out").attempt(row["deployment_id"], row["attempt"])
    log = (attempt / "engine.log").read_text()
    assert {rank for rank, _ in re.findall(r"\(EngineCore_DP(\d) pid=(\d+)\)", log)} == {"0", "1"}
    assert not supervisor.marked(lambda environ: row["deployment_id"] in environ[supervisor.MARKER])

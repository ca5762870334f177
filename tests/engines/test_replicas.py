"""Two real engines behind the router, or two ranks of one, as one deployment, through the whole command."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.launch import supervisor
from sweep.__main__ import main
from sweep.disk.run_files import RunPaths, read_trials
from tests.engines.conftest import CACHE, PLATFORM

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PLATFORM != "cpu", reason="on GPUs it takes two of them"),
]


def measured(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    """Measure one trial of vLLM, after which none of its processes is left; return the row and its attempt's folder."""
    line = [
        *("cluster=inline", "tracking=none", "model=tiny-llama", "backend=vllm", "backend.flags.max-num-seqs=4"),
        *("agreement=false", f"cache_dir={CACHE}", f"out={tmp_path / 'out'}"),
        *("workload=qa", "workload.num_requests=16", "workload.output_tokens=16", "load=closed", "load.concurrency=4"),
    ]
    main([*line, *overrides])
    paths = RunPaths(tmp_path / "out")
    (row,) = read_trials(paths.trials)
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    assert (row["num_failed"], row["output_tokens"]) == (0, 16 * 16)
    assert not supervisor.marked(lambda environ: row["deployment_id"] in environ[supervisor.MARKER])
    return row, paths.attempt(row["deployment_id"], row["attempt"])


def test_two_vllm_replicas_on_a_cpu_are_one_deployment(tmp_path):
    # With its access log each engine's own log says what it was asked.
    access_log = ("backend.flags.disable-uvicorn-access-log=false", "gateway=router", "gateway.routing=round_robin")
    row, attempt = measured(tmp_path, "backend.replicas=2", *access_log)
    assert row["replicas"] == 2
    assert row["caches_reset"] is None, "both are fresh from their launch"
    logs = [(attempt / f"replica-{number}" / "engine.log").read_text() for number in (1, 2)]
    asked = [log.count('"POST /v1/completions') for log in logs]
    # Its warm-up and the first answer after the launch are asked for as well.
    assert min(asked) >= 8, asked
    facts = json.loads(row["engine_facts"])
    ports = {command[command.index("--port") + 1] for command in facts["replicas"]}
    assert len(ports) == 2


@pytest.mark.full
def test_two_data_parallel_ranks_of_a_vllm_on_a_cpu_are_one_deployment(tmp_path):
    row, attempt = measured(tmp_path, "backend.flags.data-parallel-size=2")
    assert row["replicas"] == 1
    log = (attempt / "engine.log").read_text()
    assert {rank for rank, _ in re.findall(r"\(EngineCore_DP(\d) pid=(\d+)\)", log)} == {"0", "1"}

"""Out of memory as a result: real engines that are given too little, or asked for too much."""

import os
import resource

import httpx
import psutil
import pytest

from backends.launch import server
from tests.engines.conftest import CONTEXT, assert_oom_load, configured, stream
from tests.engines.test_gpu_memory import too_large

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["transformers_cb", "openvino"])
def test_blocks_that_do_not_fit_are_oom_load(launch_for, name):
    """By the same settings as on a GPU."""
    assert_oom_load(too_large(name), launch_for)


def test_a_kv_cache_that_does_not_fit_is_oom_load(launch_for):
    # In one process it starts in half the time; what is tested here is the same.
    changed = {"cpu_kv_cache_gib": 100_000, "environ": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}
    reason = assert_oom_load(configured("backend", "vllm").model_copy(update=changed), launch_for)
    assert "less than requested memory for kv" in reason


@pytest.mark.parametrize("name", ["transformers", "ctranslate2"])
def test_a_batch_that_does_not_fit_is_out_of_memory_and_the_host_lives_on(launch_for, name):
    backend = configured("backend", name)
    with server.running(backend, launch_for(backend), marker=f"test/{os.getpid()}/oom") as engine:
        stream(engine, [100], 4)  # what a first batch sets up for good
        position = engine.log_position()
        room = psutil.Process(engine.pid).memory_info().vms + 64 * 2**20
        unlimited = resource.prlimit(engine.pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        body = {"prompt": [[100] * (CONTEXT - 8)] * 128, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=120, trust_env=False)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "out_of_memory"
        assert engine.alive()
        assert engine.ran_out_of_memory()
        assert engine.ran_out_of_memory(since=position)
        after = engine.log_position()
        resource.prlimit(engine.pid, resource.RLIMIT_AS, unlimited)
        _, total = stream(engine, [[100] * 40] * 3, 4)
        assert total["completion_tokens"] == 12
        assert not engine.ran_out_of_memory(since=after)

"""Out of memory on a GPU, on purpose. Only with one: `scripts/gpu-check memory`."""

import os

import httpx
import pytest

from backends.launch import server
from sweep.records import Outcome
from tests.engines.conftest import CONTEXT, GPUS, configured, here, left_behind, stream

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600), pytest.mark.skipif(not GPUS, reason="no GPU")]

# What asks for more than any GPU has, by backend.
TOO_LARGE = {
    "vllm": {"flags": {"gpu-memory-utilization": 0.01}},
    "sglang": {"flags": {"mem-fraction-static": 0.001}},
    "llamacpp": {"slots": 4_000_000},
    "exllama": {"cache_tokens": 2_000_000_000},
}


@pytest.mark.parametrize("name", [name for name in TOO_LARGE if name in here()])
def test_a_cache_that_does_not_fit_is_oom_load(launch_for, name):
    backend = configured("backend", name)
    backend = backend.model_copy(update=TOO_LARGE[name])
    marker = f"test/{os.getpid()}/oom"
    with pytest.raises(server.LaunchError) as caught, server.running(backend, launch_for(backend), marker=marker):
        pytest.fail("it must not become ready")
    assert caught.value.outcome is Outcome.OOM_LOAD, caught.value.log_tail
    assert left_behind(marker) == []


def test_a_batch_that_does_not_fit_is_out_of_memory_and_the_host_lives_on(launch_for):
    backend = configured("backend", "transformers")
    with server.running(backend, launch_for(backend), marker=f"test/{os.getpid()}/oom") as engine:
        for rows in (256, 1024, 4096, 16384):
            body = {"prompt": [[100] * (CONTEXT - 8)] * rows, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=300, trust_env=False)
            if answer.status_code != 200:
                break
        assert answer.json()["error"]["type"] == "out_of_memory"
        assert engine.alive()
        assert engine.ran_out_of_memory()
        _, total = stream(engine, [[100] * 40] * 3, 4)
        assert total["completion_tokens"] == 12

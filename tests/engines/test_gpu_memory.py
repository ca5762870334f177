"""Out of memory on a GPU, on purpose. Only with one: `scripts/gpu-check memory`."""

import os
from typing import Any

import httpx
import pytest

from backends.base import Backend
from backends.launch import server
from sweep.base.config import build
from sweep.base.options import load_option
from tests.engines.conftest import CONTEXT, GPUS, assert_oom_load, configured, here, stream

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600), pytest.mark.skipif(not GPUS, reason="no GPU")]

# What asks for more memory than any GPU has, or leaves the cache none, by backend that reserves it when it is launched.
TOO_LARGE: dict[str, dict[str, Any]] = {
    "vllm": {"flags": {"gpu-memory-utilization": 0.01}},
    "vllm_gptq": {"flags": {"gpu-memory-utilization": 0.01}},
    "vllm_offline": {"flags": {"gpu-memory-utilization": 0.01}},
    "sglang": {"flags": {"mem-fraction-static": 0.001}},
    "lmdeploy": {"flags": {"cache-max-entry-count": 100_000_000}},  # of at least 1 it is a number of blocks
    "llamacpp": {"slots": 4_000_000},
    "exllama": {"cache_tokens": 1_000_000_000},
    "ollama": {"slots": 4_000_000},
    "openvino": {"flags": {"cache_size": 1_000_000}},  # GB
    "transformers_cb": {"scheduler": {"num_blocks": 100_000_000}},
    "tensorrt_llm": {"flags": {"max_batch_size": 2_000_000, "max_num_tokens": 2_000_000_000}},
    "tgi": {"flags": {"cuda-memory-fraction": 0.0001}},  # less than the weights
}
# Those that take it with each batch.
BY_BATCH = ("transformers", "transformers_4bit", "transformers_8bit", "ctranslate2")


def too_large(name: str) -> Backend:
    option, keys = load_option("backend", name), TOO_LARGE[name]
    merged = {key: {**option.get(key, {}), **value} for key, value in keys.items() if isinstance(value, dict)}
    backend = build({**option, **keys, **merged}, "backend")
    assert isinstance(backend, Backend)
    return backend


@pytest.mark.parametrize("name", [name for name in TOO_LARGE if name in here()])
def test_a_cache_that_does_not_fit_is_oom_load(launch_for, name):
    assert_oom_load(too_large(name), launch_for)


@pytest.mark.parametrize("name", [name for name in BY_BATCH if name in here()])
def test_a_batch_that_does_not_fit_is_out_of_memory_and_the_host_lives_on(launch_for, name):
    backend = configured("backend", name)
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

"""The lines in which engines say that they ran out of memory, by the strings in their own sources."""

import re

import pytest

from backends.declarations import OUT_OF_MEMORY_PATTERNS
from backends.installed import configured, names

EVERY = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.05 GiB",
    "torch.AcceleratorError: CUDA error: out of memory",
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: Triton Error [CUDA]: out of memory",
    "ncclUnhandledCudaError: NCCL WARN Cuda failure 2 'out of memory'",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
    "OSError: [Errno 12] Cannot allocate memory",
    "MemoryError",
    "terminate called after throwing an instance of 'std::bad_alloc'",
]
OF_ENGINE = [
    ("vllm", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
    ("vllm", "ValueError: Free memory on device (1.0/22.0 GiB) on startup is less than desired GPU memory utilization"),
    ("vllm", "ValueError: 4.1 GiB KV cache is needed, which is larger than the available KV cache memory (1.2 GiB)."),
    (
        "vllm",
        "ValueError: Free memory on device (3.1/22.0 GiB) on kv cache allocation is less than requested memory for kv "
        "(4.0 GiB).",
    ),
    ("vllm", "Free memory 3.2 GiB is less than the engine's budget after excluding external process's weights"),
    ("sglang", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),
    ("sglang", "RuntimeError: Prefill out of memory. Try to lower your batch size."),
    ("sglang", "RuntimeError: Decode out of memory. Try to lower your batch size."),
    ("sglang", "RuntimeError: alloc_req_slots runs out of memory. Please set a smaller number for"),
    ("lmdeploy", "[TM][FATAL] out of memory at 21474836480/23609475072"),
    ("lmdeploy", "RuntimeError: No enough gpu memory for runtime."),
    ("tensorrt_llm", "RuntimeError: Executor creation failed due to insufficient GPU memory."),
    ("tensorrt_llm", "[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, stream): out of memory"),
    ("exllama", "ValueError: Insufficient VRAM for model and cache"),
    ("exllama", "RuntimeError: Insufficient VRAM in split for model and cache"),
    ("llamacpp", "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"),
    ("llamacpp", "CUDA error: out of memory"),
    ("llamacpp", "alloc_tensor_range: failed to allocate CPU buffer of size 4294967296"),
    ("llamacpp", "llama_model_load: error loading model: unable to allocate CUDA0 buffer"),
    ("ctranslate2", "RuntimeError: mkl_malloc: failed to allocate memory"),
    ("ctranslate2", "RuntimeError: CUDA failed with error out of memory"),
    (
        "tgi",
        "Not enough memory to handle 4096 prefill tokens. You need to decrease `--max-batch-prefill-tokens`",
    ),
    ("tgi", "Error: Backend(Warmup(NotEnoughMemory(16384)))"),
]
HARMLESS = [
    "INFO using gpu_memory_utilization=0.9; lower it if the engine goes out of memory",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "INFO GPU KV cache memory: 12.3 GiB",
]
ENGINES = sorted({name for name, _ in OF_ENGINE} | {"transformers", "transformers_cb", "vllm_offline"})


@pytest.mark.parametrize(("name", "line"), [*((name, line) for name in ENGINES for line in EVERY), *OF_ENGINE])
def test_out_of_memory_is_recognised(name, line):
    assert configured(name).log.ran_out_of_memory(f"loading\n{line}\n")


@pytest.mark.parametrize("name", [name for name in names() if configured(name).launches])
def test_every_pattern_of_an_engine_has_a_line(name):
    """Those for any engine too; a pattern is a message of the engine's sources: see test_engine_tables."""
    lines = EVERY + [line for _, line in OF_ENGINE]
    for pattern in (*OUT_OF_MEMORY_PATTERNS, *configured(name).log.out_of_memory):
        assert any(re.search(pattern, line, re.IGNORECASE) for line in lines), pattern


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("line", HARMLESS)
def test_other_lines_are_not(name, line):
    assert not configured(name).log.ran_out_of_memory(f"loading\n{line}\n")

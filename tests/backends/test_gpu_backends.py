"""Engines that need a GPU: command lines, metrics and facts by contract, and the ExLlama host on fake packages."""

import contextlib
import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from backends.base import Backend, Host, Launch
from backends.host.library import ContinuousLibrary, LibrarySettings, PromptRow
from backends.launch import container_options, server
from backends.launch.gpus import Gpu
from sweep.base.config import CONF, ConfigError, build
from sweep.base.options import load_option
from tests.support.http_stub import page, serving

GPU = Host(gpus=("NVIDIA L4",), executables=frozenset({"nvcc"}))
NAMES = ["sglang", "lmdeploy", "tensorrt_llm", "exllama"]


def configured(name: str, **more: object) -> Backend:
    backend = build({**load_option("backend", name), **more}, "backend")
    assert isinstance(backend, Backend)
    return backend


@pytest.mark.parametrize("name", ["vllm", "sglang", "transformers", "simulated"])
@pytest.mark.parametrize("api", ["chat", "tgi"])
def test_only_completions_takes_a_list_of_prompts(name, api):
    configured(name).check()
    with pytest.raises(ValueError, match=rf"^backend.api={api}: allows one prompt per call; .*batch_form=streams$"):
        configured(name, api=api).check()
    configured(name, api=api, batch_form="streams").check()


@pytest.mark.parametrize("name", ["openai", "tgi", "vllm"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://h:port", "http://[::1", "http://h:0", "h:8000", "http://u:p@h"]
)
def test_an_endpoint_that_cannot_be_is_refused_in_one_line(name, url):
    with pytest.raises(ConfigError, match=r"^backend.url='[^\n]*$") as refused:
        configured(name, url=url)
    assert "expected http(s)://host[:port][/base]" in str(refused.value) or "credentials" in str(refused.value)
    assert configured(name, url="https://[::1]:8443/base/").url == "https://[::1]:8443/base"


@pytest.fixture
def launch(tmp_path) -> Launch:
    return Launch(
        model=Path("/models/llama"),
        served_name="llama",
        port=8123,
        workdir=tmp_path,
        python="/env/bin/python",
        gpus=("0", "1"),
        dtype="float16",
        max_model_len=4096,
        seed=7,
    )


COMMANDS = {
    "sglang": (
        {"mem-fraction-static": 0.8, "disable-radix-cache": True},
        "sglang.launch_server --model-path /models/llama --served-model-name llama --host 127.0.0.1 --port 8123 "
        "--dtype float16 --random-seed 7 --context-length 4096 --tp-size 2 --enable-metrics --mem-fraction-static 0.8 "
        "--disable-radix-cache",
    ),
    "lmdeploy": (
        {"backend": "pytorch", "model-format": "awq"},
        "lmdeploy serve api_server /models/llama --server-name 127.0.0.1 --server-port 8123 --model-name llama "
        "--dtype float16 --session-len 4096 --tp 2 --backend pytorch --model-format awq",
    ),
    "tensorrt_llm": (
        {"max_batch_size": 64},
        "tensorrt_llm.commands.serve serve /models/llama --host 127.0.0.1 --port 8123 --max_seq_len 4096 --tp_size 2 "
        "--extra_llm_api_options OPTIONS --max_batch_size 64",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line(name, launch):
    given, command = COMMANDS[name]
    line = " ".join(configured(name, gpus=2, flags=given).command(launch))
    options = launch.workdir / "trtllm.yaml"
    assert line.replace(str(options), "OPTIONS") == f"/env/bin/python -m {command}"
    if name == "tensorrt_llm":
        assert json.loads(options.read_text()) == {
            "return_perf_metrics": True,
            "enable_iter_perf_stats": True,
            "dtype": "float16",
            "kv_cache_config": {"enable_block_reuse": False},  # or a trial would be answered from the one before
        }


def test_lmdeploy(launch):
    backend = configured("lmdeploy", flags={"model-format": "awq"})
    assert not backend.token_ids
    assert backend.batch_form == "streams"
    assert backend.facts(launch) == {"prefix_cache": False, "quantization": "awq"}


def test_exllama(launch):
    line = configured("exllama", flags={"max_batch_size": 32}).command(launch)
    assert line[:3] == ["/env/bin/python", "-m", "backends.host"]
    found = dict(zip(line[3::2], line[4::2], strict=True))
    assert found["--library"] == "backends.host.libraries.exllama_library"
    assert found["--device"] == "cuda"
    assert json.loads(found["--flags"]) == {"cache_tokens": 65536, "max_batch_size": 32}
    facts = configured("exllama").facts(launch)
    assert (facts["substitute_for"], facts["quantization"]) == ("ExLlama V1", "exl3 4 bits")


@pytest.mark.parametrize("name", NAMES)
def test_unavailable_without_a_gpu_with_the_remedy_in_one_line(name):
    backend = configured(name)
    said = backend.unavailable(Host(executables=frozenset({"nvcc"})))
    assert "CUDA GPU" in said
    assert "backend=openai backend.url=" in said
    assert "\n" not in said
    assert backend.unavailable(GPU) is None
    assert backend.env.cpu is None
    assert (CONF / "environment" / f"{backend.env.cuda}.yaml").exists()


def test_exllama_makes_its_own_format_of_the_weights(tmp_path):
    """The environment's interpreter is a stand-in for the converter, which needs a GPU."""
    model, python = tmp_path / "model", tmp_path / "environment" / "bin" / "python"
    model.mkdir()
    python.parent.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    python.write_text(CONVERTER)
    python.chmod(0o755)
    converted = configured("exllama", bits=3.5).weights(model, str(python), tmp_path / "cache", print)
    assert (converted / "model.safetensors").read_text().split() == [
        *("-m", "exllamav3.conversion.convert_model", "--in_dir", str(model)),
        *("--out_dir", str(converted.with_name(f".{converted.name}.partial"))),
        *("--work_dir", str(converted.with_name(f".{converted.name}.partial") / "work"), "--bits", "3.5"),
    ]
    assert not (converted / "work").exists()
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "exl3"}}')
    assert configured("exllama").weights(model, str(python), tmp_path / "cache", print) == model
    (model / "config.json").write_text('{"fails": true}')
    python.write_text(CONVERTER.replace('echo "$@"', "exit 0; echo"))
    with pytest.raises(ValueError, match=r"^exllamav3's converter failed: .* !! Error: out of luck"):
        configured("exllama").weights(model, str(python), tmp_path / "cache", print)


CONVERTER = """#!/bin/sh
[ "$1" = -m ] || { echo '{"exllamav3": "1.6.5"}'; exit 0; }
mkdir "$8"
echo " !! Error: out of luck"
echo "$@" > "$6/model.safetensors"
"""


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("tgi", "batch_current_max_tokens / tgi_batch_max_total_tokens, batch_current_size, queue_size"),
        ("sglang", "token_usage, num_running_reqs, num_queue_reqs"),
        ("lmdeploy", "gpu_cache_usage_perc, num_requests_running, num_requests_waiting"),
        ("tensorrt_llm", "kv_cache_utilization, num_requests_running, num_requests_waiting"),
    ],
)
def test_metrics_by_their_names(name, metrics):
    prefix, names = {"tensorrt_llm": "trtllm_", "tgi": "tgi_"}.get(name, f"{name}:"), configured(name).metric_names
    kept = [names[series] for series in ("kv_cache_usage", "requests_running", "requests_waiting")]
    assert kept == [f"{prefix}{metric}" for metric in metrics.split(", ")]


# -- ExLlama's packages, as far as the host uses them: result dictionaries as their `iterate` documents them


class Tensor:
    def __init__(self, values: list) -> None:
        self.values = values

    def flatten(self) -> "Tensor":
        return Tensor(self.values[0]) if self.values and isinstance(self.values[0], list) else self

    def tolist(self) -> list:
        return self.values


class Job:
    def __init__(self, **arguments: object) -> None:
        self.arguments = arguments
        self.given = 0


class Generator:
    """Counts on from the prompt's last token. A stop token is held back, as both versions do."""

    max_pages = 10

    def __init__(self, **arguments: object) -> None:
        self.arguments = arguments
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.referenced_pages = {b"a": 1, b"b": 2}
        self.pagetable = self  # V3's, which has the method that is V2's generator's own
        self.cpu_page_cache: object = None
        self.resets = 0

    def reset_page_table(self) -> None:
        self.resets += 1

    def enqueue(self, job: Job) -> None:
        self.jobs.append(job)

    def cancel(self, job: Job) -> None:
        self.jobs.remove(job)
        self.cancelled.append(job)

    def clear_queue(self) -> None:
        self.jobs.clear()

    def get_cache_stats(self) -> dict:
        return {"used_tokens": 512, "max_tokens": 2560}

    def iterate(self) -> list[dict]:
        results = [{"job": job, "stage": "started", "eos": False} for job in self.jobs if not job.given]
        for job in list(self.jobs):
            prompt = job.arguments["input_ids"].values[0]
            if prompt[0] == 666:
                self.jobs.remove(job)
                results.append({"job": job, "stage": "error", "eos": True, "error": ValueError("too large")})
                continue
            job.given += 1
            token = prompt[-1] + job.given
            result = {"job": job, "stage": "streaming", "eos": False}
            if token in job.arguments["stop_conditions"]:
                result |= {"eos": True, "eos_reason": "stop_token", "eos_triggering_token_id": token}
            else:
                result |= {"token_ids": Tensor([[token]])}
                if job.given == job.arguments["max_new_tokens"]:
                    result |= {"eos": True, "eos_reason": "max_new_tokens"}
            if result["eos"]:
                self.jobs.remove(job)
            results.append(result)
        return results


class Anything:
    """A class of which only the calls matter."""

    calls: ClassVar[list[tuple]] = []

    def __init__(self, *arguments: object, **named: object) -> None:
        self.calls.append((arguments, named))

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **named: None

    @classmethod
    def from_directory(cls, *arguments: object) -> "Anything":
        return cls(*arguments)

    from_config = from_directory


@pytest.fixture(params=["exllamav2", "exllamav3"])
def library(request, monkeypatch):
    torch = types.ModuleType("torch")
    torch.tensor = torch.Tensor = Tensor
    torch.cuda = types.SimpleNamespace(
        memory_allocated=lambda: 5.0, memory_reserved=lambda: 7.0, empty_cache=lambda: None
    )
    package = types.ModuleType(request.param)
    parts = {"torch": torch, request.param: package}
    if request.param == "exllamav2":
        package.__version__ = "0.3.2"
        for name in ("ExLlamaV2", "ExLlamaV2Config", "ExLlamaV2Cache", "ExLlamaV2Tokenizer"):
            setattr(package, name, Anything)
        generator = parts["exllamav2.generator"] = types.ModuleType("exllamav2.generator")
        generator.ExLlamaV2DynamicGenerator, generator.ExLlamaV2DynamicJob = Generator, Job
        generator.ExLlamaV2Sampler = types.SimpleNamespace(Settings=types.SimpleNamespace(greedy=lambda: "greedy"))
    else:
        for name in ("Config", "Model", "Cache", "Tokenizer"):
            setattr(package, name, Anything)
        package.Generator, package.Job, package.GreedySampler = Generator, Job, lambda: "greedy"
        version = parts["exllamav3.version"] = types.ModuleType("exllamav3.version")
        version.__version__ = "1.6.5"
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "backends.host.libraries.exllama_library", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == request.param else None)
    exllama_library = importlib.import_module("backends.host.libraries.exllama_library")
    flags = {"cache_tokens": 1000, "max_batch_size": 8}
    loaded = exllama_library.load(LibrarySettings(Path("/models/llama"), "cuda", "float16", 0, flags))
    yield loaded
    sys.modules.pop("backends.host.libraries.exllama_library", None)


def test_exllama_is_a_continuous_library(library):
    assert isinstance(library, ContinuousLibrary)
    assert library.version in ("0.3.2", "1.6.5")
    assert library.generator.arguments["max_batch_size"] == 8
    sizes = [named for _, named in Anything.calls if named]
    assert 1024 in sizes[-1].values()  # the cache, in whole pages


class Logits(np.ndarray):
    """As much of a tensor as log-probabilities need."""

    device = "cuda"

    def float(self) -> "Logits":
        return self

    def gather(self, axis: int, index: "Logits") -> "Logits":
        return np.take_along_axis(self, index, axis)


def test_exllama_scores_a_text_over_the_vocabulary_without_its_padding(library, monkeypatch):
    torch = sys.modules["torch"]
    given = []

    def forward(ids, *parameters):
        given.append(parameters)
        scores = np.zeros((1, ids.shape[1], 6))
        scores[0, :, 5] = 50.0  # pads the vocabulary
        return (scores if "exllamav3" in sys.modules else scores[..., :5]).view(Logits)

    monkeypatch.setattr(Anything, "forward", staticmethod(forward), raising=False)
    monkeypatch.setattr(Anything, "actual_vocab_size", 5, raising=False)
    monkeypatch.setattr(torch, "tensor", lambda values, device=None: np.array(values).view(Logits))
    monkeypatch.setattr(torch, "inference_mode", contextlib.nullcontext, raising=False)
    monkeypatch.setattr(
        torch, "log_softmax", lambda values, axis: values - np.log(np.exp(values).sum(axis)[..., None]), raising=False
    )
    scored = library.log_probabilities([[1, 2, 3], [4, 0]])
    assert [len(values) for values in scored] == [2, 1]
    assert np.concatenate(scored) == pytest.approx(np.log(1 / 5))
    assert given == [({"attn_mode": "flash_attn_nc"},) if "exllamav3" in sys.modules else ()] * 2


def run(library, *rows: PromptRow) -> list:
    for row in rows:
        library.add(row)
    errors = []
    for _ in range(10):
        for row, tokens, error in library.step():
            errors += [error] if error else []
            for token in tokens:
                row.take(token)
    return errors


def test_exllama_rows_end_by_length_or_stop_token(library):
    by_length, by_stop = PromptRow([1, 10], 3, frozenset()), PromptRow([20], 9, frozenset({22}))
    assert run(library, by_length, by_stop) == []
    assert (by_length.tokens, by_length.finish_reason) == ([11, 12, 13], "length")
    assert (by_stop.tokens, by_stop.finish_reason) == ([21, 22], "stop")
    assert library.rows == {}


def test_exllama_a_failed_job_is_its_rows_error(library):
    good = PromptRow([10], 2, frozenset())
    assert run(library, PromptRow([666], 2, frozenset()), good) == ["ValueError: too large"]
    assert good.finish_reason == "length"


def test_exllama_drop_clear_and_memory(library):
    row, other = PromptRow([10], 100, frozenset()), PromptRow([50], 100, frozenset())
    library.add(row)
    library.add(other)
    library.step()
    library.drop(row)
    library.drop(row)
    assert len(library.generator.cancelled) == 1
    assert library.memory() == {"kv_cache_usage": 0.2, "allocated_memory_bytes": 5.0, "reserved_memory_bytes": 7.0}
    library.clear()
    assert library.generator.jobs == []
    assert library.rows == {}


def test_exllama_forgets_earlier_prompts(library, launch):
    assert configured("exllama").reset_paths == ("/reset_caches",)
    assert library.reset_caches() is True
    assert library.generator.resets == 1
    library.generator.cpu_page_cache = object()  # another tier that it was told to keep
    assert library.reset_caches() is False


OFFLOADED = {"kv-offloading-size": 4}
OTHER = {"kv-transfer-config": {"kv_connector": "LMCacheConnectorV1"}}
SUFFIX = {"speculative-config": {"method": "suffix"}}
ALONE = {"speculative-config": {"method": "suffix", "suffix_decoding_max_cached_requests": 0}}


@pytest.mark.parametrize(
    ("name", "flags", "paths"),
    [
        ("vllm", {}, ("/reset_prefix_cache",)),
        ("vllm", OFFLOADED, ("/reset_prefix_cache?reset_external=true",)),
        ("vllm", {**OFFLOADED, "kv-offloading-backend": "lmcache"}, ()),  # says that it is reset, and is not
        ("vllm", OTHER, ()),
        ("vllm", {"kv_transfer_config.kv_connector": "LMCacheConnectorV1"}, ()),
        ("vllm", SUFFIX, ()),
        ("vllm", ALONE, ("/reset_prefix_cache",)),
        ("vllm_offline", OTHER, ()),
        ("vllm_offline", OFFLOADED, ("/reset_caches",)),
        ("sglang", {"hicache-storage-backend": "file"}, ("/flush_cache", "/hicache/storage-backend/clear")),
        ("sglang", {"enable-lmcache": True}, ()),
    ],
)
def test_a_reset_reaches_all_that_remembers_or_is_none(name, flags, paths, launch):
    backend = configured(name, flags=flags)
    assert backend.resets == paths
    if "speculative-config" in flags:
        tree = "of each request" if paths else "of all answers since the launch"
        assert backend.facts(launch)["suffix_tree"] == tree
    table = backend.flag_rules.table
    assert name == "vllm_offline" or {path.partition("?")[0] for path in paths} <= set(table.routes)


def test_what_cannot_be_reset_is_off_unless_it_is_asked_for(launch):
    tensorrt = configured("tensorrt_llm")
    assert tensorrt.facts(launch)["prefix_cache"] is False
    cache = {"free_gpu_memory_fraction": 0.8, "enable_block_reuse": True}
    assert configured("tensorrt_llm", options={"kv_cache_config": cache}).facts(launch)["prefix_cache"] is True
    tgi = configured("tgi")
    assert tgi.environment(launch)["PREFIX_CACHING"] == "0"
    contained = dataclasses.replace(launch, image="tgi@sha256:1", runtime="docker")
    assert "--env=PREFIX_CACHING" in container_options.wrap(tgi.command(launch), contained, tgi.environment(launch))
    assert tgi.facts(launch)["prefix_cache"] is False
    asked = configured("tgi", environ={"PREFIX_CACHING": "1"})
    assert asked.environment(launch)["PREFIX_CACHING"] == "1"
    assert asked.facts(launch)["prefix_cache"] is True
    assert configured("tgi", url="http://127.0.0.1:3000").facts(launch)["prefix_cache"] is None


def test_vllm_serve_takes_the_model_as_its_first_argument(launch):
    line = configured("vllm").command(launch)
    assert line[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "/models/llama"]
    assert "--model" not in line


@pytest.mark.parametrize("name", ["vllm", "vllm_offline"])
def test_speculation_is_that_of_the_flags_for_any_platform(name):
    methods = {key: {"speculative-config": {"method": key}} for key in ("flags", "cpu_flags", "cuda_flags")}
    assert configured(name, **methods).features() == ("flags",)
    del methods["flags"], methods["cpu_flags"]
    assert configured(name, **methods).features() == ("cuda_flags",)


def test_vllm_offline_is_the_engine_that_others_measure(launch):
    backend = configured("vllm_offline")
    facts = backend.facts(launch)
    assert (facts["detokenize"], facts["multiprocessing"]) == (True, True)
    assert backend.environment(launch)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    bare = configured("vllm_offline", detokenize=False, multiprocessing=False)
    assert bare.environment(launch)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert '"detokenize": false' in " ".join(bare.command(launch))


SETTLED = {"version": "0.5.23", "attention_backend": "fa3", "disable_cuda_graph": False, "kv_cache_dtype": "auto"}


class Started(server.Engine):
    """An engine as it is read, without a process."""

    def _start(self) -> None:
        self.command = []
        self.variables = {}


# As the sources of the pinned versions write them.
CHOICES = {
    "sglang": (
        "[2026-11-01 12:00:00] Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1\n"
        "[2026-11-01 12:00:09] Capture target decode CUDA graph end. bs=[1, 2, 4], elapsed=8.25 s, mem usage=0.5 GB\n",
        {
            "attention_backend": "fa3",
            "disable_cuda_graph": "False",
            "kv_cache_dtype": "auto",
            "graph_batch_sizes": "[1, 2, 4]",
            "graph_capture_seconds": "8.25",
        },
    ),
    "lmdeploy": (
        "lmdeploy - WARNING - Fallback to pytorch engine because '/m' not supported by turbomind engine.\n"
        "lmdeploy - WARNING - For higher performance, please install FlashAttention-3 https://example.org\n",
        {"engine": "pytorch", "missing": "FlashAttention-3"},
    ),
    "vllm": (
        "(EngineCore pid=1) INFO 11-24 20:21:37 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
        "model='/m', enforce_eager=False, aux_output_config=None, kv_cache_dtype=auto, device_config=cuda, "
        "enable_chunked_prefill=True, pooler_config=None, compilation_config={'mode': <CompilationMode.VLLM_COMPILE: "
        "3>, 'cudagraph_mode': <CUDAGraphMode.FULL_AND_PIECEWISE: (2, 1)>, 'cudagraph_num_of_warmups': 1}\n",
        {
            "enforce_eager": "False",
            "kv_cache_dtype": "auto",
            "chunked_prefill": "True",
            "cudagraph_mode": "FULL_AND_PIECEWISE",
        },
    ),
    "tgi": (
        "2026-11-01T12:00:00.000000Z  INFO text_generation_launcher: Using attention flashinfer - Prefix caching 0\n",
        {"attention": "flashinfer", "prefix_caching": "0"},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_an_engine_chose_is_a_fact(name, tmp_path):
    backend, (log, chosen) = configured(name), CHOICES[name]
    engine = Started(backend, Launch(model=tmp_path, served_name="m", workdir=tmp_path, dtype="float16"), "m", {})
    (tmp_path / server.LOG).write_text(log)
    with serving(page(backend.wire.version_path, json.dumps(SETTLED))) as engine.url:
        assert engine.facts()["chosen"] == chosen


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_the_blocks_of_vllms_prefix_cache_are_a_fact(name, tmp_path):
    backend = configured(name).model_copy(update={"url": None, "metrics_path": "/metrics"})
    engine = Started(backend, Launch(model=tmp_path, served_name="m", workdir=tmp_path, dtype="float16"), "m", {})
    metrics = '# HELP\nvllm:cache_config_info{cache_dtype="auto",block_size="32",engine="0"} 1.0\n'
    with serving(page("/metrics", metrics)) as engine.url:
        assert engine.facts()["prefix_block"] == 32


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("sglang", "7.5", "float16"),
        ("lmdeploy", "7.5", "float16"),
        ("sglang", "8.0", "bfloat16"),
        ("lmdeploy", "8.9", "bfloat16"),
        ("transformers", "7.5", "bfloat16"),  # emulates it
    ],
)
def test_the_dtype_of_a_row_is_the_one_that_a_gpu_without_bfloat16_gets(name, capability, dtype, tmp_path, monkeypatch):
    """Left to the engine, stored in bfloat16, on two GPUs of which one is older."""
    present = {"GPU-a": Gpu("GPU-a", 0, "NVIDIA H100", "9.0"), "GPU-b": Gpu("GPU-b", 1, "an older one", capability)}
    monkeypatch.setattr(server, "find_gpu", present.get)
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    its = Launch(model=tmp_path, served_name="m", workdir=tmp_path, gpus=("GPU-a", "GPU-b"))
    assert Started(configured(name), its, "m", {})._dtype() == dtype


@pytest.mark.parametrize(
    ("checkpoint", "features", "runs"),
    [
        ("gptq", {"avx2"}, False),
        ("gptq", {"avx2", "avx512f"}, True),
        ("ct-int8", {"avx2"}, True),
        ("gptq", {"asimd"}, True),  # ARM has kernels of its own
        ("gptq", None, True),  # of a node that has not joined nothing is known
    ],
)
def test_four_bit_kernels_for_cpus_need_avx512(checkpoint, features, runs):
    host = Host(cpu_features=None if features is None else frozenset(features))
    reason = configured("vllm_gptq", checkpoint=checkpoint).unavailable(host)
    assert (reason is None) == runs
    assert runs or ("AVX-512" in reason and "ct-int8" in reason)

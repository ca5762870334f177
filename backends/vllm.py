"""vLLM's OpenAI server, on CUDA or, with its CPU build, on a CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from backends.base import Backend, Host, Launch, metrics
from backends.declarations import OTHER_CONFIGURATION, RANDOM_WEIGHTS, VLLM_BLOCK, FlagRules, LogReading, Traits, Wire
from backends.launch.replicas import shares
from backends.prepare import checkpoints
from backends.tables.flags import value_of
from sweep.base.records import BatchForm

RESETTABLE = ("OffloadingConnector", "SimpleCPUOffloadConnector")  # can be reset in vLLM 0.32; the others only say so
SPECULATION_KEYS = {"method": "method", "model": "model", "tokens": "num_speculative_tokens"}  # of --spec-…
NO_KV_SCALES = "the checkpoint's scales, else 1.0 (vLLM 0.32 has no --calculate-kv-scales)"


def speculation(backend: Backend) -> tuple[str, ...]:
    """Return the method of speculative decoding in the flags, as an environment's feature."""
    config = value_of(given_flags(backend), "speculative-config")
    return (str(config["method"]),) if isinstance(config, Mapping) and "method" in config else ()


def given_flags(backend: Backend) -> dict[str, Any]:
    """Return a backend's flags for any platform."""
    return backend.cpu_flags | backend.cuda_flags | backend.flags


def external_cache(flags: Mapping[str, Any]) -> str | None:
    """Return the flags' connector to a KV cache outside the GPU; None if no flag sets one."""
    if value_of(flags, "kv-transfer-config"):
        return str(value_of(flags, "kv-transfer-config.kv_connector"))
    native = value_of(flags, "kv-offloading-backend") in (None, "native")
    return ("OffloadingConnector" if native else "lmcache") if value_of(flags, "kv-offloading-size") else None


def keeps_answers(flags: Mapping[str, Any]) -> bool:
    """Return whether speculation learns from all answers since the launch, which cannot be reset."""
    config = value_of(flags, "speculative-config")
    suffix = isinstance(config, Mapping) and config.get("method") == "suffix"
    return suffix and config.get("suffix_decoding_max_cached_requests") != 0


def utilisation(flags: Mapping[str, Any]) -> float:
    """Return the share of a GPU's memory that the flags allow."""
    return float(value_of(flags, "gpu-memory-utilization") or 0.92)


class VLLM(Backend):
    """`flags` are options of `vllm serve` (`max-num-seqs: 256`). Unquantised weights become a `checkpoint`."""

    flag_rules = FlagRules(
        commands=("vllm serve", "vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main serve"),
        tables=("vllm", "vllm_cuda12"),
        set_by={
            "model": "model",
            "served-model-name": "model.served_name",
            "port": "backend.port",
            "dtype": "backend.dtype",
            "max-model-len": "model.max_model_len",
            "tensor-parallel-size": "backend.gpus",
            "config": "backend.flags",
            "tokenizer": "model.tokenizer",
            "tokenizer-revision": "model.tokenizer_revision",
            "revision": "model.revision",
            **dict.fromkeys(("hf-config-path", "hf-overrides"), OTHER_CONFIGURATION),
            "load-format=dummy": RANDOM_WEIGHTS,
        },
        beyond=(
            *("nnodes", "node-rank", "master-addr", "headless", "device-ids", "data-parallel-backend=ray"),
            *(f"distributed-executor-backend={launcher}" for launcher in ("ray", "external_launcher")),
            *("ec-transfer-config", "mm-encoder-only"),
            *(f"data-parallel-{part}" for part in ("rank", "start-rank", "size-local", "address")),
            *(f"data-parallel-{part}-lb" for part in ("external", "hybrid", "multi-port-external")),
        ),
        parallel=("data-parallel-size", "pipeline-parallel-size", "prefill-context-parallel-size"),
        folded=("speculative-config", "kv-transfer-config"),
        short={f"spec-{flag}": f"speculative-config.{key}" for flag, key in SPECULATION_KEYS.items()},
        draft="speculative-config.model",
        draft_revision="speculative-config.revision",
    )
    log = LogReading(
        # "(EngineCore pid=4711) ERROR 11-21 12:00:00 [core.py:1136] ValueError: …": process, level, time, source file.
        prefix=r"^(\(.*? pid=\d+\) ?)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:.]+ \[[^\]]*\] ?)?",
        out_of_memory=(
            r"on kv cache allocation is less than requested memory for kv",
            *(r"No available memory for the cache blocks", r"larger than the available KV cache memory"),
            *(r"is less than desired GPU memory utilization", r"is less than the engine's budget"),
        ),
        noise=(r"See root cause above", r"EngineCore failed to start", r"EngineDeadError"),
        dtype=r"\bdtype=torch\.(\w+), max_seq_len=",
        choices={
            "attention_backend": r"Using (\w+) attention backend out of",
            "model_runner": r"\b[Uu]sing (?:the )?(V\d) [Mm]odel [Rr]unner",
            "kv_cache_layout": r"Using (\w+) KV cache layout",
            "kv_cache_tokens": r"KV cache size: ([\d,]+) tokens",
            "kv_cache_gib": r"Available KV cache memory: ([\d.]+) GiB",  # per GPU
            "kv_cache_dtype": r"\bkv_cache_dtype=([\w.]+), device_config=",
            "enforce_eager": r"\benforce_eager=(\w+), ",
            "cudagraph_mode": r"\bcompilation_config=\{.*'cudagraph_mode': <CUDAGraphMode\.(\w+):",
            "chunked_prefill": r"\benable_chunked_prefill=(\w+), ",
            "graph_capture_seconds": r"Graph capturing finished in (\d+) secs",
            "async_scheduling": r"Async scheduling is (disabled)",
            "flashinfer": r"FlashInfer kernels are (disabled)",
        },
    )
    wire = Wire(
        prefix_block=VLLM_BLOCK,
        show_special={"skip_special_tokens": False, "spaces_between_special_tokens": False},
        log_probabilities="prompt_logprobs",
    )
    traits = Traits(
        distribution="vllm",
        inherits=("VLLM_*", "FLASHINFER_*"),
        before_ampere="refuses",
        reserves_memory=True,
        continuous_batching=True,
        beam_search=True,
        quantisations="GPTQ, AWQ, compressed-tensors, int8, fp8 (GPU), bitsandbytes (GPU); KV: fp8",
    )

    checkpoint: Literal["gptq", "ct-int8"] | None = None  # checkpoint format to make from the model's weights
    group_size: PositiveInt = 128  # number of weights that share a scale in a 4-bit checkpoint
    cpu_kv_cache_gib: PositiveInt = 1  # GiB of memory for the KV cache without a GPU
    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    reset_paths: tuple[str, ...] = ("/reset_prefix_cache",)  # exists only in vLLM's development mode; see `environment`
    metric_names: dict[str, str] = metrics(
        "vllm:",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        kv_cache_usage="kv_cache_usage_perc",
        requests_running="num_requests_running",
        requests_waiting="num_requests_waiting",
        preemptions_total="num_preemptions_total",
        spec_decode_drafts_total="spec_decode_num_drafts_total",
        spec_decode_draft_tokens_total="spec_decode_num_draft_tokens_total",
        spec_decode_accepted_tokens_total="spec_decode_num_accepted_tokens_total",
        spec_decode_accepted_at_position_total="spec_decode_num_accepted_tokens_per_pos_total",
    )

    @property
    def resets(self) -> tuple[str, ...]:
        flags = given_flags(self)
        external = external_cache(flags)
        if keeps_answers(flags) or external not in (None, *RESETTABLE):
            return ()
        return tuple(f"{path}?reset_external=true" if external else path for path in self.reset_paths)

    def unavailable(self, host: Host) -> str | None:
        """Also reject a GPTQ checkpoint on AVX2: this build lacks `cpu_gemm_wna16`, so the first request crashes it."""
        features = host.cpu_features or frozenset()
        lacking = not host.gpus and "avx2" in features and "avx512f" not in features
        if lacking and self.checkpoint == "gptq":
            return f"{self.name} has 4-bit kernels only for CPUs with AVX-512; use checkpoint=ct-int8, or a GPU"
        return super().unavailable(host)

    def features(self) -> tuple[str, ...]:
        return speculation(self)

    def command(self, launch: Launch) -> list[str]:
        # The CPU build has no working `vllm` command, since the command looks for a distribution called vllm.
        # `vllm serve` takes the model as its first argument, since --model will be removed.
        serve = ["vllm.entrypoints.cli.main", "serve"] if launch.gpus else ["vllm.entrypoints.openai.api_server"]
        arguments: dict[str, Any] = {
            **({} if launch.gpus else {"model": str(launch.model)}),
            "served-model-name": launch.served_name,
            "host": launch.host,
            "port": launch.port,
            "dtype": launch.dtype,
            "seed": launch.seed,
            "max-model-len": launch.max_model_len,
            "tensor-parallel-size": self.gpus if launch.gpus else 1,
        }
        serve += [str(launch.model)] if launch.gpus else []
        return [launch.python, "-m", *serve, *self.flag_arguments(launch, arguments)]

    def environment(self, launch: Launch) -> dict[str, str]:
        # Only development mode has /reset_prefix_cache. It also serves /collective_rpc (worker methods, with arguments
        # as text), /sleep, /pause, /update_weights and /server_info (settings and VLLM_* variables). All are only on
        # loopback (`flags.host` is refused) and end with sweep's engine. Whoever reaches them could also disturb the
        # engine with ordinary requests. The mode does not change how requests are served.
        ours = {"VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
        if not launch.gpus:
            ours["VLLM_CPU_KVCACHE_SPACE"] = str(self.cpu_kv_cache_gib)
            if launch.cpus:  # by default it binds a thread to each core of a NUMA node but one
                ranks = shares(launch.cpus, self.gpus_of_engine // self.gpus)
                ours["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, rank)) for rank in ranks)
        return {**ours, **super().environment(launch)}

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        return checkpoints.quantised(model, self.checkpoint, self.group_size, python, cache_dir, progress)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str | None:
        return checkpoints.obstacle(self.checkpoint, is_quantised)

    def memory_share(self, launch: Launch) -> float:
        return utilisation(self.flags_on(launch))

    def facts(self, launch: Launch) -> dict[str, Any]:
        flags = self.flags_on(launch)
        cached = flags.get("enable-prefix-caching", not flags.get("no-enable-prefix-caching", False))
        facts = {"prefix_cache": bool(cached), "quantization": flags.get("quantization") or self.checkpoint}
        if str(flags.get("kv-cache-dtype", "auto")).startswith("fp8"):
            facts["kv_scales"] = NO_KV_SCALES
        if "suffix" in speculation(self):
            facts["suffix_tree"] = "of all answers since the launch" if keeps_answers(flags) else "of each request"
        return facts | checkpoints.method(launch.model)

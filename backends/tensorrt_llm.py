"""TensorRT-LLM's `trtllm-serve`. Written from its source (1.2 and 1.3), which has no CPU build to run here."""

import json
from typing import Any

from pydantic import Field, field_validator

from backends.base import Backend, Launch, metrics, without_secrets
from backends.declarations import OTHER_CONFIGURATION, RANDOM_WEIGHTS, FlagRules, LogReading, Traits
from sweep.base.records import BatchForm

OPTIONS = "trtllm.yaml"  # file in the attempt's folder
OWN_OPTIONS = {
    "model": "model",
    "dtype": "backend.dtype",
    "max_seq_len": "model.max_model_len",
    "tensor_parallel_size": "backend.gpus",
    "pipeline_parallel_size": "backend.flags.pp-size",
    "context_parallel_size": "backend.flags.cp-size",
    "tokenizer": "model.tokenizer",
    "revision": "model.revision",
    "model_kwargs": OTHER_CONFIGURATION,
}
"""Fields of its LLM API that only sweep sets -> the key to set instead."""


class TensorRTLLM(Backend):
    """`flags` are options of `trtllm-serve serve`. `options` are fields of its LLM API (KV metrics since 1.3)."""

    flag_rules = FlagRules(
        commands=("trtllm-serve serve", "trtllm-serve"),
        tables=("tensorrt_llm",),
        newer=dict.fromkeys(("served-model-name", "kv_cache_usage", "requests_running", "requests_waiting"), "1.3"),
        set_by={
            "port": "backend.port",
            "served-model-name": "model.served_name",
            "max-seq-len": "model.max_model_len",
            "tp-size": "backend.gpus",
            **dict.fromkeys(("config", "extra-llm-api-options"), "backend.options"),
            **dict.fromkeys(("tokenizer", "custom-tokenizer"), "model.tokenizer"),
            "revision": "model.revision",
        },
        beyond=("disagg-cluster-uri", "server-role", "metadata-server-config-file"),
        parallel=("pp-size", "cp-size"),
    )
    log = LogReading(
        prefix=r"^\[[\d/:-]+\] \[TRT-LLM\] (\[RANK \d+\] )?\[\w\] ",
        out_of_memory=(r"Executor creation failed due to insufficient GPU memory",),
    )
    traits = Traits(
        distribution="tensorrt-llm",
        inherits=("TRTLLM_*", "TLLM_*", "OMPI_*", "PMIX_*"),
        needs_gpu=True,
        reserves_memory=True,
        continuous_batching=True,
        beam_search=True,
        quantisations="ModelOpt fp8, NVFP4, W4A16 AWQ, W4A8; KV: fp8, NVFP4",
    )

    options: dict[str, Any] = Field(default={"return_perf_metrics": True, "enable_iter_perf_stats": True})
    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    metrics_path: str | None = "/prometheus/metrics"
    metric_names: dict[str, str] = metrics(
        "trtllm_",
        kv_cache_usage="kv_cache_utilization",
        requests_running="num_requests_running",
        requests_waiting="num_requests_waiting",
    )

    @field_validator("options")
    @classmethod
    def _not_set_elsewhere(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, key in OWN_OPTIONS.items():
            if name in options:
                raise ValueError(f"options.{name}: set {key} instead")
        if options.get("load_format") == "dummy":
            raise ValueError(f"options.load_format=dummy: set {RANDOM_WEIGHTS} instead")
        return without_secrets(options)

    def command(self, launch: Launch) -> list[str]:
        options = launch.workdir / OPTIONS
        options.parent.mkdir(parents=True, exist_ok=True)
        dtype = {} if launch.dtype == "auto" else {"dtype": launch.dtype}
        options.write_text(json.dumps({**dtype, **self._options()}))  # JSON is also YAML
        arguments: dict[str, Any] = {
            "host": launch.host,
            "port": launch.port,
            "max_seq_len": launch.max_model_len,
            "tp_size": self.gpus,
            "extra_llm_api_options": str(options),
        }
        serve = [launch.python, "-m", "tensorrt_llm.commands.serve", "serve", str(launch.model)]
        return [*serve, *self.flag_arguments(launch, arguments)]

    def _options(self) -> dict[str, Any]:
        """Return the options. By default they disable reuse of earlier prompts' blocks, which cannot be reset."""
        cache = {"enable_block_reuse": False, **(self.options.get("kv_cache_config") or {})}
        return {**self.options, "kv_cache_config": cache}

    def facts(self, launch: Launch) -> dict[str, Any]:
        options = self._options()
        return {"prefix_cache": bool(options["kv_cache_config"]["enable_block_reuse"]), "options": options}

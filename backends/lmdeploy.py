"""LMDeploy's OpenAI server. Written from its source (0.18.0), which has no CPU build to run here."""

from typing import Any

from backends.base import Backend, Launch, metrics
from backends.declarations import OTHER_CONFIGURATION, FlagRules, LogReading, Traits


class LMDeploy(Backend):
    """`flags` are options of `lmdeploy serve api_server`. It answers a list one by one, so batches are streams."""

    flag_rules = FlagRules(
        commands=("lmdeploy serve api_server",),
        tables=("lmdeploy",),
        set_by={
            "server-port": "backend.port",
            "model-name": "model.served_name",
            "dtype": "backend.dtype",
            "session-len": "model.max_model_len",
            "tp": "backend.gpus",
            "dp": "backend.replicas",
            "revision": "model.revision",
            "hf-overrides": OTHER_CONFIGURATION,
        },
        beyond=(
            *("nnodes", "node-rank", "dist-init-addr", "proxy-url", "distributed-executor-backend=ray"),
            *("role=Prefill", "role=Decode"),
        ),
        draft="speculative-draft-model",
    )
    log = LogReading(
        prefix=r"^\d{4}-\d\d-\d\d [\d:,]+ - lmdeploy - \w+ - (\S+:\d+ - )?",  # time, level, source file
        out_of_memory=(r"\bout of memory at \S+/\S+", r"No enough gpu memory"),  # TurboMind's messages
        choices={  # it logs little unless flags.log-level is INFO, which also logs every prompt
            "engine": r"Fallback to (pytorch) engine because",
            "missing": r"For higher performance, please install (FlashAttention-3)",
            "backend_config": r"updated backend_config=(.+)",
        },
    )
    traits = Traits(
        distribution="lmdeploy",
        inherits=("LMDEPLOY_*", "TM_*"),
        needs_gpu=True,
        before_ampere="float16",
        reserves_memory=True,
        continuous_batching=True,
        beam_search=False,
        quantisations="AWQ, GPTQ, SmoothQuant W8A8, fp8; KV: int8, int4",
    )

    token_ids: bool = False
    metric_names: dict[str, str] = metrics(
        "lmdeploy:",
        kv_cache_usage="gpu_cache_usage_perc",
        requests_running="num_requests_running",
        requests_waiting="num_requests_waiting",
        spec_decode_drafts_total="spec_decode_num_drafts_total",
        spec_decode_draft_tokens_total="spec_decode_num_draft_tokens_total",
        spec_decode_accepted_tokens_total="spec_decode_num_accepted_tokens_total",
    )

    def command(self, launch: Launch) -> list[str]:
        arguments: dict[str, Any] = {
            "server-name": launch.host,
            "server-port": launch.port,
            "model-name": launch.served_name,
            "dtype": launch.dtype,
            "session-len": launch.max_model_len,
            "tp": self.gpus,
        }
        serve = [launch.python, "-m", "lmdeploy", "serve", "api_server", str(launch.model)]
        return [*serve, *self.flag_arguments(launch, arguments)]

    def facts(self, launch: Launch) -> dict[str, Any]:
        flags = self.flags_on(launch)
        return {"prefix_cache": bool(flags.get("enable-prefix-caching")), "quantization": flags.get("model-format")}

"""SGLang's OpenAI server. Written from its source (0.5.23), which has no CPU build to run here."""

from typing import Any

from backends.base import Backend, Launch, metrics
from backends.declarations import OTHER_CONFIGURATION, RANDOM_WEIGHTS, FlagRules, LogReading, Traits, Wire
from backends.tables.flags import value_of
from sweep.base.records import BatchForm

# Flags for caches outside the GPU that /flush_cache leaves intact.
UNRESETTABLE = ("enable-lmcache", "enable-flexkv", "enable-unified-cache-external-linker", "radix-cache-backend")


class SGLang(Backend):
    """`flags` are options of `python -m sglang.launch_server`."""

    flag_rules = FlagRules(
        commands=("sglang.launch_server", "sglang serve"),
        tables=("sglang",),
        set_by={
            "model-path": "model",
            "served-model-name": "model.served_name",
            "port": "backend.port",
            "dtype": "backend.dtype",
            "context-length": "model.max_model_len",
            "tp-size": "backend.gpus",
            "config": "backend.flags",
            "tokenizer-path": "model.tokenizer",
            "revision": "model.revision",
            **dict.fromkeys(("json-model-override-args", "decrypted-config-file"), OTHER_CONFIGURATION),
            "load-format=dummy": RANDOM_WEIGHTS,
        },
        beyond=(
            *("nnodes", "node-rank", "dist-init-addr", "base-gpu-id", "gpu-id-step", "use-ray"),
            *("disaggregation-mode=prefill", "disaggregation-mode=decode", "encoder-urls", "encoder-register-urls"),
            *("encoder-only", "decoupled-spec-role=verifier", "decoupled-spec-role=drafter"),
            "remote-instance-weight-loader-seed-instance-ip",
        ),
        parallel=("dp-size", "pp-size"),
        draft="speculative-draft-model-path",
        draft_revision="speculative-draft-model-revision",
        settled=(
            *("attention-backend", "prefill-attention-backend", "decode-attention-backend", "sampling-backend"),
            *("disable-cuda-graph", "disable-overlap-schedule", "chunked-prefill-size", "kv-cache-dtype"),
            *("page-size", "max-running-requests"),
        ),
    )
    log = LogReading(
        prefix=r"^\[\d{4}-\d\d-\d\d [\d:]+( \w+)*\] ",  # "[2026-11-21 12:00:00 TP0] …": time, process
        out_of_memory=(
            r"Not enough memory\. Please try to increase --mem-fraction-static",
            *(r"\b(Prefill|Decode) out of memory", r"alloc_req_slots runs out of memory"),
        ),
        noise=(r"Received sigquit from a child process",),
        choices={
            "graph_batch_sizes": r"Capture .+ end\. bs=(.+), elapsed=",
            "graph_capture_seconds": r"Capture .+ end\. bs=.+, elapsed=([\d.]+) s",
        },
    )
    # Ready once the server's warm-up request is answered; /health_generate would first sleep for a second.
    wire = Wire(ready_path="/ready", version_path="/server_info", log_probabilities="input_token_logprobs")
    traits = Traits(
        distribution="sglang",
        inherits=("SGLANG_*", "SGL_*", "FLASHINFER_*"),
        needs_gpu=True,
        before_ampere="float16",
        reserves_memory=True,
        continuous_batching=True,
        beam_search=False,
        quantisations="GPTQ, AWQ, compressed-tensors, fp8, bitsandbytes, GGUF; KV: fp8",
    )

    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    reset_paths: tuple[str, ...] = ("/flush_cache",)  # clears its radix cache; status 400 while requests run
    metric_names: dict[str, str] = metrics(
        "sglang:",
        kv_cache_usage="token_usage",
        requests_running="num_running_reqs",
        requests_waiting="num_queue_reqs",
        preemptions_total="num_retracted_requests_total",
        prefix_cache_hits_total="cached_tokens_total",
        spec_decode_drafts_total="spec_verify_calls_total",
        spec_decode_accept_length="spec_accept_length",
        spec_decode_accept_rate="spec_accept_rate",
    )

    @property
    def resets(self) -> tuple[str, ...]:
        """Also reset the storage behind the hierarchical cache, which has a separate route; other caches have none."""
        flags = self.flags_for("cuda")
        stored = ("/hicache/storage-backend/clear",) if value_of(flags, "hicache-storage-backend") else ()
        return () if any(value_of(flags, flag) for flag in UNRESETTABLE) else (*self.reset_paths, *stored)

    def command(self, launch: Launch) -> list[str]:
        arguments: dict[str, Any] = {
            "model-path": str(launch.model),
            "served-model-name": launch.served_name,
            "host": launch.host,
            "port": launch.port,
            "dtype": launch.dtype,
            "random-seed": launch.seed,
            "context-length": launch.max_model_len,
            "tp-size": self.gpus,
            "enable-metrics": True,
        }
        return [launch.python, "-m", "sglang.launch_server", *self.flag_arguments(launch, arguments)]

    def _multiplying_flags(self) -> tuple[str, ...]:
        if value_of(self.flags_for("cuda"), "enable-dp-attention"):  # the flag stays within the tensor-parallel GPUs
            return ("pp-size",)
        return super()._multiplying_flags()

    def facts(self, launch: Launch) -> dict[str, Any]:
        flags = self.flags_on(launch)
        return {"prefix_cache": not flags.get("disable-radix-cache"), "quantization": flags.get("quantization")}

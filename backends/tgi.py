"""Text Generation Inference: in its image, by its launcher, or attached. It has neither ignore_eos nor token ids."""

from typing import Any

from pydantic import Field

from backends.base import Backend, EnvironmentChoice, Launch, metrics
from backends.declarations import FlagRules, LogReading, Traits, Wire
from backends.launch.server import free_port
from sweep.base.records import Api

LAUNCHER = "text-generation-launcher"
MEMORYLESS = {"PREFIX_CACHING": "0"}  # its cache cannot be reset, so a trial could hit an earlier trial's cache

POOL_SHARE = 0.95  # share of the remaining memory that the engine's warm-up takes


class TGI(Backend):
    """`flags` are options of text-generation-launcher."""

    flag_rules = FlagRules(
        commands=("text-generation-launcher",),
        tables=("tgi",),
        set_by={
            "model-id": "model",
            "port": "backend.port",
            "dtype": "backend.dtype",
            **dict.fromkeys(("max-input-tokens", "max-input-length", "max-total-tokens"), "model.max_model_len"),
            **dict.fromkeys(("num-shard", "sharded"), "backend.gpus"),
            "revision": "model.revision",
            "tokenizer-config-path": "model.tokenizer",
        },
        beyond=("ngrok",),  # the flag would expose the engine to the internet
    )
    log = LogReading(
        # "2025-01-01T00:00:00.000000Z ERROR text_generation_launcher: Shard 0 crashed"
        prefix=r"^\d{4}-\d\d-\d\dT\S+Z\s+(INFO|WARN|ERROR|DEBUG)\s+[\w:{}=\"]+:\s*",
        out_of_memory=(r"NotEnoughMemory\(", r"You need to decrease `?--max-batch-prefill-tokens"),
        noise=(r"^Error: (Shard|Webserver)", r"[Ss]hard \d+ (crashed|failed)", r"^Shard .* failed"),
        choices={"attention": r"Using attention (\w+)", "prefix_caching": r"Prefix caching (\w+)"},
    )
    wire = Wire(version_path="/info")
    traits = Traits(
        inherits=("FLASHINFER_*", "ATTENTION", "PREFIX_CACHING"),
        attachable=True,
        needs_gpu=True,
        reserves_memory=True,
        continuous_batching=True,
        beam_search=False,
        quantisations="GPTQ, AWQ, EXL2, Marlin, bitsandbytes, EETQ, fp8; KV: fp8",
    )

    env: EnvironmentChoice = EnvironmentChoice(cuda="tgi")

    api: Api = "tgi"
    token_ids: bool = False
    ignores_eos: bool = False
    stop_grace: float = Field(default=20.0, gt=0)  # an engine on a node that is cut off has 60 seconds in total
    metric_names: dict[str, str] = metrics(
        "tgi_",
        kv_cache_usage="batch_current_max_tokens / tgi_batch_max_total_tokens",  # reserved share of its token budget
        requests_running="batch_current_size",
        requests_waiting="queue_size",
    )

    def command(self, launch: Launch) -> list[str]:
        own_ports = {
            "hostname": launch.host,
            "port": launch.port,
            # Every launcher on a node needs its own ports and files, but does not choose free ones itself.
            "prometheus-port": free_port(),
            "master-port": free_port(),
            "shard-uds-path": f"/tmp/tgi-{launch.port}",
        }
        return [launch.binary or LAUNCHER, *self.flag_arguments(launch, {**self._model_arguments(launch), **own_ports})]

    def _model_arguments(self, launch: Launch) -> dict[str, Any]:
        longest = launch.max_model_len
        return {
            "model-id": str(launch.model),
            "num-shard": max(1, len(launch.gpus)),
            "dtype": None if launch.dtype == "auto" else launch.dtype,
            "max-input-tokens": longest - 1 if longest else None,
            "max-total-tokens": longest,
            "usage-stats": "off",
        }

    def environment(self, launch: Launch) -> dict[str, str]:
        return {**MEMORYLESS, **super().environment(launch)}

    def memory_share(self, launch: Launch) -> float:
        return POOL_SHARE * float(self.flags_on(launch).get("cuda-memory-fraction", 1.0))

    def facts(self, launch: Launch) -> dict[str, Any]:
        # By default it chooses by kind of model and does not report its choice.
        dtype = {"dtype": None} if launch.dtype == "auto" else {}
        cached = (MEMORYLESS | self.environ)["PREFIX_CACHING"].lower() in ("1", "true") if self.launches else None
        return {**dtype, "prefix_cache": cached, "quantization": self.flags_on(launch).get("quantize")}

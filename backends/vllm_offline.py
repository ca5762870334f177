"""vLLM's engine in the host's own process: prompts of exact length as token ids, no HTTP while the clock runs."""

from typing import Any, ClassVar

from pydantic import Field

from backends.base import FLAG_KEYS, OTHER_CONFIGURATION, Hosted, Launch
from backends.vllm import VLLM, speculation, utilisation


class VLLMOffline(Hosted):
    """Flags are fields of vLLM's EngineArgs, spelt as `vllm serve` or as Python spells them.

    `detokenize` and `multiprocessing` are on, as in vLLM's LLM class and `vllm bench throughput`.
    A trial is one control call with all its requests; the Records hold the engine's own stamps.
    """

    timed_inside = True
    draft_flag = VLLM.draft_flag
    draft_revision_flag = VLLM.draft_revision_flag
    parallel_flags = ("pipeline-parallel-size",)
    log_probabilities_by = "host"
    reserves_memory = True
    before_ampere = VLLM.before_ampere
    dtype_pattern = VLLM.dtype_pattern

    library = "backends.host.libraries.vllm_offline_library"
    detokenize: bool = True  # make the text of the answers too, which nothing here reads
    multiprocessing: bool = True  # V1's engine core in a process of its own, beside the one that feeds it
    cpu_kv_cache_gib: int = Field(default=1, ge=1)  # GiB of memory for the KV cache without a GPU
    distribution = "vllm"
    abilities = VLLM.abilities
    inherits = VLLM.inherits
    tables = ("vllm_offline", "vllm_offline_cuda12")
    own_flags: ClassVar[dict[str, str]] = {
        "model": "model",
        "model-weights": "model",
        "dtype": "backend.dtype",
        "max-model-len": "model.max_model_len",
        "tensor-parallel-size": "backend.gpus",
        "disable-log-stats": "backend.metric_names",
        "tokenizer": "model.tokenizer",
        "tokenizer-revision": "model.tokenizer_revision",
        "revision": "model.revision",
        "hf-config-path": OTHER_CONFIGURATION,
        "hf-overrides": OTHER_CONFIGURATION,
    }
    own_values = VLLM.own_values
    reset_paths: tuple[str, ...] = ("/reset_caches",)
    oom_patterns = VLLM.oom_patterns
    choice_patterns = VLLM.choice_patterns
    noise_patterns = VLLM.noise_patterns
    metric_names: dict[str, str] = Field(
        default={ours: theirs.replace("vllm:", "host_") for ours, theirs in VLLM(name="vllm").metric_names.items()}
    )

    def check(self) -> None:
        super().check()
        for group in FLAG_KEYS:
            for name, size in getattr(self, group).items():
                if "data-parallel-size" in self._meanings(name) and str(size) not in ("None", "1"):
                    raise ValueError(
                        f"backend.{group}.{name}={size}: its host's process has one engine; allowed is 1 (for several "
                        f"ranks behind one URL: backend=vllm backend.flags.data-parallel-size={size})"
                    )

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        ours = {"tensor_parallel_size": self.gpus if launch.gpus else 1, "max_model_len": launch.max_model_len}
        return {**ours, "detokenize": self.detokenize, **super().flags_on(launch)}

    def features(self) -> tuple[str, ...]:
        return speculation(self)

    def environment(self, launch: Launch) -> dict[str, str]:
        theirs = VLLM(name=self.name, cpu_kv_cache_gib=self.cpu_kv_cache_gib).environment(launch)
        del theirs["VLLM_SERVER_DEV_MODE"]  # there is no server
        multiprocessing = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(self.multiprocessing))}
        return {**theirs, **multiprocessing, **super().environment(launch)}

    def memory_share(self, launch: Launch) -> float:
        return utilisation(self.flags_on(launch))

    def facts(self, launch: Launch) -> dict[str, Any]:
        options = {"detokenize": self.detokenize, "multiprocessing": self.multiprocessing}
        return {**VLLM(name=self.name, flags=self.flags_on(launch)).facts(launch), **options}

    def message(self, line: str) -> str:
        return VLLM(name=self.name).message(line)

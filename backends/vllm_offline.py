"""vLLM's engine, served in-process: prompts are token ids of exact length, and no HTTP is used while timing."""

from dataclasses import replace
from typing import Any

from pydantic import Field

from backends.base import FLAG_KEYS, Hosted, Launch
from backends.vllm import VLLM, given_flags, speculation, utilisation

SERVER_ONLY = ("served-model-name", "port", "config")  # vLLM flags that only sweep sets


class VLLMOffline(Hosted):
    """`flags` are fields of vLLM's EngineArgs. A trial is one control call; Records hold the engine's timestamps."""

    flag_rules = replace(
        VLLM.flag_rules,
        commands=(),
        tables=("vllm_offline", "vllm_offline_cuda12"),
        # There is no server, so there is no name or port. The Python interface has additional flags.
        set_by={
            **{flag: key for flag, key in VLLM.flag_rules.set_by.items() if flag not in SERVER_ONLY},
            "model-weights": "model",
            "disable-log-stats": "backend.metric_names",
        },
        beyond=tuple(flag for flag in VLLM.flag_rules.beyond if flag != "headless"),
        parallel=("pipeline-parallel-size", "prefill-context-parallel-size"),
    )
    log = VLLM.log
    wire = replace(Hosted.wire, log_probabilities="host")
    traits = replace(VLLM.traits, timed_inside=True)

    library = "backends.host.libraries.vllm_offline_library"
    detokenize: bool = True  # also generate the answers' text, which is not used
    multiprocessing: bool = True  # run V1's engine core in a process of its own, apart from its feeder
    cpu_kv_cache_gib: int = Field(default=1, ge=1)  # GiB of memory for the KV cache without a GPU
    reset_paths: tuple[str, ...] = ("/reset_caches",)
    metric_names: dict[str, str] = Field(
        default={ours: theirs.replace("vllm:", "host_") for ours, theirs in VLLM(name="vllm").metric_names.items()}
    )

    @property
    def resets(self) -> tuple[str, ...]:
        return self.reset_paths if VLLM(name=self.name, flags=given_flags(self)).resets else ()

    def check(self) -> None:
        super().check()
        for group in FLAG_KEYS:
            for name, size in getattr(self, group).items():
                if "data-parallel-size" in self.flag_rules.meanings(name) and str(size) not in ("None", "1"):
                    raise ValueError(
                        f"backend.{group}.{name}={size}: the in-process server has one engine; expected 1 (for several "
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

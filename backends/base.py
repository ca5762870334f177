"""What a backend is: how one kind of engine is installed, launched, health-checked and read. Data and a few sentences.

A concrete backend is one file here and one YAML under conf/backend, whose `_target_` names the class and whose other
keys are its fields. Parsing has no effects; what runs the process is `server`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Api = Literal["completions", "chat", "tgi"]
BatchForm = Literal["list", "streams"]


class EnvironmentSpec(BaseModel):
    """A named set of requirements, or something the user already has. Never the orchestrator's own environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    python: str | None = None  # an interpreter of the user's own: nothing is installed
    binary: str | None = None  # an executable of the user's own
    python_version: str | None = None  # e.g. "3.11"; None = the orchestrator's
    requirements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # distributions that must not be there, whoever depends on them
    torch: Literal["cpu", "cuda"] | None = None  # which builds of torch: None = whatever the index gives


@dataclass(frozen=True)
class Host:
    """What a node has, as far as a backend needs to know to say that it cannot run there."""

    platform: str = "linux"
    gpus: tuple[str, ...] = ()  # accelerator names, e.g. "NVIDIA L4"
    gpu_memory_bytes: int = 0
    memory_bytes: int = 0
    cpus: int = 1
    executables: frozenset[str] = frozenset()  # those of WANTED_EXECUTABLES found on PATH, e.g. "docker"


@dataclass(frozen=True)
class Launch:
    """Everything that one launch of an engine needs to know; a backend turns it into a command line."""

    model: Path  # folder in Hugging Face layout
    served_name: str
    port: int
    workdir: Path  # the attempt's folder: engine.log goes there
    python: str = "python"  # interpreter of the engine's environment
    binary: str | None = None
    host: str = "127.0.0.1"
    gpus: tuple[str, ...] = ()  # ids as CUDA_VISIBLE_DEVICES wants them; empty on a CPU
    threads: int = 1  # CPU threads the engine may use
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Backend(BaseModel):
    """The adapter for one kind of engine. Subclasses add fields and override what differs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    env: EnvironmentSpec | None = None
    flags: dict[str, Any] = Field(default_factory=dict)  # passed through to the engine, not mirrored one by one
    environ: dict[str, str] = Field(default_factory=dict)  # extra environment variables of the engine
    dtype: str = "auto"
    gpus: PositiveInt = 1  # GPUs of one deployment (its tensor-parallel size); ignored on a CPU
    port: int | None = Field(default=None, ge=1, le=65535)  # None: a free one is found
    launch_timeout: PositiveFloat = 900.0  # s
    extra_body: dict[str, Any] = Field(default_factory=dict)  # added to every request body

    # What the client must know to talk to it.
    api: Api = "completions"
    batch_form: BatchForm = "streams"  # a lockstep batch is one call with a list of prompts, or simultaneous streams
    token_ids: bool = True  # prompts may be given as token ids
    continuous_usage: bool = False  # takes stream_options.continuous_usage_stats
    ignores_eos: bool = True  # takes ignore_eos

    # Where the engine is read. Keys of metric_names are ours (see sweep/telemetry.py), values are Prometheus names.
    launches: bool = True  # False: attaches to a running endpoint
    ready_path: str = "/health"
    metrics_path: str | None = None
    metric_names: dict[str, str] = Field(default_factory=dict)
    oom_patterns: tuple[str, ...] = (
        r"CUDA out of memory",
        r"OutOfMemoryError",
        r"CUBLAS_STATUS_ALLOC_FAILED",
        r"not enough memory",
        r"DefaultCPUAllocator: can't allocate memory",
        r"Cannot allocate memory",
        r"MemoryError",
        r"std::bad_alloc",
    )

    def command(self, launch: Launch) -> list[str]:
        """The command line that starts the engine in the foreground."""
        raise NotImplementedError

    def environment(self, launch: Launch) -> dict[str, str]:
        """Environment variables that the engine gets besides the inherited ones."""
        return {"OMP_NUM_THREADS": str(launch.threads), **self.environ}

    def unavailable(self, host: Host) -> str | None:
        """Why this engine cannot run on such a host, with the remedy, in one line; None if it can."""
        return None

    def ran_out_of_memory(self, log: str) -> bool:
        """Whether the engine's log says so."""
        return any(re.search(pattern, log, re.IGNORECASE) for pattern in self.oom_patterns)


def cli(flags: Mapping[str, Any]) -> list[str]:
    """`{max-num-seqs: 256, enforce-eager: true, x: false, y: null, s: {a: 1}}` as command-line arguments.

    True is a bare flag, false and null leave it out, a mapping or list becomes JSON.
    """
    import json

    arguments: list[str] = []
    for key, value in flags.items():
        if value is None or value is False:
            continue
        arguments.append(f"--{key}")
        if value is not True:
            arguments.append(json.dumps(value) if isinstance(value, dict | list) else str(value))
    return arguments

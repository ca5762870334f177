"""A backend: how one kind of engine is installed, launched, health-checked and read; see docs/backends.md."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from backends.declarations import FlagRules, LogReading, Traits, Wire
from backends.tables.table import EngineTable
from sweep.base.config import Strict
from sweep.base.masking import secret_within
from sweep.base.records import TYPED_APIS, Api, BatchForm

HOST = Path(__file__).resolve().parent / "host"
QUEUE = ("requests_running", "requests_waiting")  # metrics of every library in the host
TORCH_MEMORY = ("allocated_memory_bytes", "reserved_memory_bytes")  # and of those that run on torch

FLAG_KEYS = ("flags", "cpu_flags", "cuda_flags")  # of a backend
Platform = Literal["cpu", "cuda"]
AMPERE = "8.0"  # the first compute capability with bfloat16

Runtime = Literal["docker", "podman", "apptainer"]
Progress = Callable[[str], None]  # told, in a few words, what is being done just now

COARSE_FLAG = re.compile(r"^(kv[-_]?cache[-_]dtype|cache[-_]type[-_][kv]|quant(ization|ize|_policy))$")
WIDE_FORMATS = {"auto", "none", "f32", "f16", "bf16", "float", "float32", "float16", "bfloat16", "half"}


class SourceBuild(Strict):
    """Programs that are compiled with CMake; a source distribution's archive is only where their source comes from."""

    sdist: str  # pinned requirement, e.g. "llama-cpp-python==0.3.36"
    folder: str = "."  # of the archive, the one with CMakeLists.txt
    targets: tuple[str, ...] = ()  # executables to build; the first one is the engine. None: nothing is compiled
    options: dict[str, str | bool] = Field(default_factory=dict)  # CMake's -D
    cpu_options: dict[str, dict[str, str | bool]] = Field(default_factory=dict)  # by feature, as /proc/cpuinfo has it
    architectures: str | None = None  # CMake's option for the GPUs that it is compiled for; None: for no GPU
    keep: tuple[str, ...] = ()  # files and folders beside CMakeLists.txt that stay, under share/


class EnvironmentLock(Strict):
    """The exact distributions of an environment on one platform."""

    target: str  # the platform, e.g. "linux-x86_64-cuda13-python3.12"
    pins: tuple[str, ...]  # e.g. "torch==2.13.0"


class EnvironmentSpec(Strict):
    """A named set of requirements (conf/environment/<name>.yaml), or something the user already has."""

    name: str
    python: str | None = None  # an interpreter of the user's own: nothing is installed. Of an image: the one in it
    binary: str | None = None  # an executable of the user's own, or in an image
    image: str | None = None  # a container image, "name:tag" or "name@sha256:…": nothing is installed
    runtime: Runtime | None = None  # that runs it; None: the first of docker, podman, apptainer on the node
    cache: str = "/var/cache/sweep"  # in an image: the folder of what an engine compiles, kept between launches
    shm_size: str = "16g"  # of an image: shared memory, through which an engine's processes talk
    python_version: str | None = None  # e.g. "3.11"; None = the orchestrator's
    machine: str | None = None  # the nodes' architecture, e.g. "aarch64"; set where it is not the orchestrator's
    requirements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # distributions that must not be there, whoever depends on them
    torch: Platform | None = None  # which builds of torch: None = whatever the index gives
    cuda: Literal[12, 13] | None = None  # the CUDA major of its builds; None = none, or whatever the index gives
    glibc: str = "2.28"  # the oldest that its wheels run with
    capability: str | None = None  # the oldest GPUs that its kernels run on, e.g. "8.0"; None = any that its CUDA has
    note: str | None = None  # what an installation needs besides, where a program cannot check it
    needs: dict[str, str] = Field(default_factory=dict)  # programs (or Python.h) that must be there, and the remedy
    driver: str | None = None  # the oldest of NVIDIA's that it runs with, e.g. "535"; None: its CUDA major's
    environ: dict[str, str] = Field(default_factory=dict)  # variables of its engine
    environ_older_driver: dict[str, str] = Field(default_factory=dict)  # further ones with a driver older than its CUDA
    disk_gb: float | None = None  # GB that it takes on a node's disk, about
    substitutes: str | None = None  # why it is taken in place of the one named for any GPU; set when it is chosen
    index: tuple[str, ...] = ()  # package indexes that it needs besides the user's own
    optional: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # further requirements, by feature of an engine
    compiled: tuple[str, ...] = ()  # distributions that are compiled against the others, after these are installed
    imports: tuple[str, ...] = ()  # modules that compile themselves when they are first imported: done at the end
    source: SourceBuild | None = None  # what is built there besides
    lock: EnvironmentLock | None = None  # what is installed, exactly; None: not resolved yet
    plain: "EnvironmentSpec | None" = None  # used where optional parts that the engine can do without fail
    content: dict[str, str] = Field(default_factory=dict)  # digests of the user's own python and binary, when planned

    @field_validator("index")
    @classmethod
    def _without_password(cls, index: tuple[str, ...]) -> tuple[str, ...]:
        for url in index:
            if urlsplit(url).password:
                raise ValueError("holds a password: name that index in pip's settings instead")
        return index


class EnvironmentChoice(Strict):
    """The environment that an engine runs in: one named for each platform, unless the user gives an own one."""

    cpu: str | None = None  # name of a conf/environment/*.yaml
    cuda: str | None = None
    cuda12: str | None = None  # the same engine built for CUDA 12, for nodes whose driver or GPU is too old for `cuda`
    image: str | None = None  # a container image with the engine, "name:tag" or "name@sha256:…"
    runtime: Runtime | None = None  # for an image: docker, podman or apptainer; null: the first that a node has
    python: str | None = None  # the user's own interpreter, with the engine installed
    binary: str | None = None  # the user's own executable, e.g. of llama-server
    extras: tuple[str, ...] = ()  # optional parts of the environment to install although these flags do not need them
    inherit: tuple[str, ...] = ()  # further variables of this machine that the engine gets; PREFIX_*: all that begin so


def metrics(prefix: str, *names: str, **renamed: str) -> Any:
    """Return a default for `metric_names`: the engine's begin with `prefix`, the rest is ours, or `renamed`."""
    theirs = dict(zip(names, names, strict=True)) | renamed
    return Field(default_factory=lambda: {ours: prefix + name for ours, name in theirs.items()})


@dataclass(frozen=True)
class Host:
    """The facts of a node by which a backend decides whether it can run there. None means unknown."""

    platform: str = "linux"
    gpus: tuple[str, ...] = ()  # accelerator names, e.g. "NVIDIA L4"
    executables: frozenset[str] = frozenset()  # which EXECUTABLES are on PATH, e.g. "docker"
    driver: str | None = None  # NVIDIA's, e.g. "550.54.15"
    capability: str | None = None  # the least compute capability of its GPUs, e.g. "8.9"
    nvcc: str | None = None  # the CUDA release of the compiler on PATH, e.g. "13.0"
    glibc: str | None = None  # e.g. "2.36"
    python: str | None = None  # e.g. "3.11"
    machine: str | None = None  # its architecture, e.g. "x86_64"
    free_disk: int | None = None  # bytes, where its cache is
    cpu_features: frozenset[str] | None = None  # as /proc/cpuinfo has them, e.g. "avx512f"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything that one launch of an engine needs to know; a backend turns it into a command line."""

    model: Path  # folder in Hugging Face layout
    served_name: str
    port: int = 0  # 0: `server.running` finds a free one
    workdir: Path  # the attempt's folder: engine.log goes there
    python: str = "python"  # interpreter of the engine's environment
    binary: str | None = None
    image: str | None = None  # by digest, or apptainer's file: the engine runs in a container of it
    runtime: Runtime | None = None
    cache: Path | None = None  # folder of this machine that is mounted as `image_cache`
    image_cache: str | None = None
    shm_size: str = "16g"
    host: str = "127.0.0.1"
    gpus: tuple[str, ...] = ()  # ids as CUDA_VISIBLE_DEVICES wants them; empty on a CPU
    threads: int = 1  # CPU threads the engine may use
    cpus: tuple[int, ...] = ()  # cores that its processes are bound to; empty = all
    environ: Mapping[str, str] = field(default_factory=dict)  # of the environment, for the engine
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    draft: Path | None = None  # folder of the draft model that the flags name
    replica: str = ""  # of several engines of one deployment, "replica 2 of 3"


class TokenPrices(Strict):
    """Prices of a million tokens, in USD."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class Backend(Strict):
    """The adapter for one kind of engine. Subclasses add fields and override what differs."""

    flag_rules: ClassVar[FlagRules] = FlagRules()
    log: ClassVar[LogReading] = LogReading()
    wire: ClassVar[Wire] = Wire()
    traits: ClassVar[Traits] = Traits()

    name: str
    env: EnvironmentChoice = Field(default_factory=EnvironmentChoice)  # its environment: {cpu, cuda, python, binary}
    flags: dict[str, Any] = Field(default_factory=dict)  # passed through to the engine, in its own spelling
    cpu_flags: dict[str, Any] = Field(default_factory=dict)  # defaults without a GPU; `flags` override them
    cuda_flags: dict[str, Any] = Field(default_factory=dict)  # defaults on a GPU; `flags` override them
    environ: dict[str, str] = Field(default_factory=dict)  # additional environment variables of the engine
    dtype: str = "auto"  # number format, as the engine calls it; auto: the engine chooses
    gpus: PositiveInt = 1  # GPUs of one engine (its tensor-parallel size); ignored on a CPU
    replicas: PositiveInt = 1  # engines of one deployment, behind the gateway's router
    port: int | None = Field(default=None, ge=1, le=65535)  # null: any free port
    launch_timeout: PositiveFloat = 900.0  # s within which the engine must be ready
    stop_grace: PositiveFloat = 5.0  # s between SIGTERM and SIGKILL
    extra_body: dict[str, Any] = Field(default_factory=dict)  # added to every request body
    headers: dict[str, str] = Field(default_factory=dict)  # added to every request's HTTP headers; not for secrets

    # What the client must know to talk to it.
    api: Api = "completions"  # completions | chat | responses | messages | tgi: the protocol of the requests
    batch_form: BatchForm = "streams"  # list | streams: a batch is one call with a list of prompts, or many streams
    token_ids: bool = True  # whether the engine accepts prompts as token ids
    continuous_usage: bool = False  # whether the engine accepts stream_options.continuous_usage_stats
    ignores_eos: bool = True  # whether the engine accepts ignore_eos

    # Where the engine is read. Keys of metric_names are ours (sweep/node/telemetry.py), values are Prometheus names.
    url: str | None = None  # URL of a running endpoint; then nothing is launched
    api_key_env: str | None = None  # NAME of the environment variable that holds the endpoint's key
    price_per_hour: PositiveFloat | None = None  # USD of the endpoint, of each of its `gpus` where that says how many
    price_per_million_tokens: TokenPrices | None = None  # USD, of an endpoint that is paid by token
    verify_tls: bool = True  # whether this machine must trust the endpoint's certificate
    reset_paths: tuple[str, ...] = ()  # paths to POST to between trials, which clear the engine's prompt caches
    metrics_path: str | None = "/metrics"  # path of the engine's Prometheus metrics
    metric_names: dict[str, str] = Field(default_factory=dict)  # sweep's name of a metric: the engine's name

    @model_validator(mode="before")
    @classmethod
    def _fit_the_api(cls, fields: Any) -> Any:
        without = dict.fromkeys(("token_ids", "ignores_eos", "continuous_usage"), False)
        return fields | without if isinstance(fields, dict) and fields.get("api") in TYPED_APIS else fields

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if self.price_per_hour and self.price_per_million_tokens:
            raise ValueError("price_per_hour and price_per_million_tokens: expected one of them")
        if (self.price_per_hour or self.price_per_million_tokens) and self.launches:
            raise ValueError(
                "price_per_hour and price_per_million_tokens: expected for an endpoint; the price of a machine that "
                "launches engines is hardware.price_per_hour"
            )
        return self

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        allowed = "expected http(s)://host[:port][/base][?query]"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:  # brackets that do not close, a port that is no number
            raise ValueError(f"{error}; {allowed}") from None
        if parts.username or parts.password:
            raise ValueError("holds credentials: put the key into an environment variable, and its name in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.fragment:
            raise ValueError(allowed)
        without_secrets(dict(parse_qsl(parts.query)))
        return url.rstrip("/")

    @field_validator("headers", "environ", "extra_body", *FLAG_KEYS)
    @classmethod
    def _no_secrets(cls, named: dict[str, Any]) -> dict[str, Any]:
        return without_secrets(named)

    @field_validator(*FLAG_KEYS)
    @classmethod
    def _in_one_spelling(cls, flags: dict[str, Any]) -> dict[str, Any]:
        return cls.flag_rules.in_one_spelling(flags)

    @property
    def resets(self) -> tuple[str, ...]:
        """The paths that make it forget all earlier trials; none where something would remember them all the same."""
        return self.reset_paths

    @property
    def launches(self) -> bool:
        """True if the engine is launched here, False if a running endpoint is attached."""
        return self.url is None

    @property
    def gpus_of_engine(self) -> int:
        """GPUs that one engine takes: its tensor-parallel size times its other parallel sizes."""
        return self.gpus * math.prod(self._parallel_sizes().values())

    def _parallel_sizes(self) -> dict[str, int]:
        """The sizes that flags multiply an engine's GPUs by, however they are spelled, each by its key."""
        flags = set(self._multiplying_flags())
        return {
            f"backend.{'flags' if name in self.flags else 'cuda_flags'}.{name}": int(size)
            for name, size in self.flags_for("cuda").items()
            if not flags.isdisjoint(self.flag_rules.meanings(name)) and str(size).isdecimal()
        }

    def _multiplying_flags(self) -> tuple[str, ...]:
        return self.flag_rules.parallel

    @property
    def gpu_count(self) -> int:
        """GPUs of one deployment."""
        return self.replicas * self.gpus_of_engine

    @property
    def gpu_keys(self) -> tuple[str, ...]:
        """The keys to lower for a deployment of fewer GPUs."""
        sizes = {"backend.gpus": self.gpus, "backend.replicas": self.replicas, **self._parallel_sizes()}
        return tuple(key for key, size in sizes.items() if size > 1)

    def features(self) -> tuple[str, ...]:
        """The features of this configuration that an environment may need optional distributions for."""
        return ()

    def check(self) -> None:
        """Raise ValueError for fields that contradict each other, in one line naming the key and what was expected."""
        if self.url is not None and not self.traits.attachable:
            raise ValueError(
                f"backend.url={self.url}: {self.name} is launched here; needs backend=openai, which attaches"
            )
        if self.batch_form == "list" and self.api != "completions":
            raise ValueError(f"backend.api={self.api}: takes one prompt per call; needs backend.batch_form=streams")
        if self.traits.most_gpus is not None and self.gpus > self.traits.most_gpus:
            raise ValueError(
                f"backend.gpus={self.gpus}: {self.name} computes on one GPU; expected 1 "
                f"(for several engines behind one URL: backend.replicas={self.gpus})"
            )
        if self.replicas > 1 and (problem := self._single()):
            raise ValueError(f"backend.replicas={self.replicas}: {problem}; expected 1")
        for group in FLAG_KEYS:
            for name, value in getattr(self, group).items():
                if setter := self.flag_rules.setter(name, value):
                    raise ValueError(f"backend.{group}.{name}={value}: only sweep sets it; set {setter} instead")
                if self.flag_rules.reaches_beyond(name, value):
                    raise ValueError(
                        f"backend.{group}.{name}={value}: leaves the node or the GPUs that this deployment is leased; "
                        "for more GPUs of its node set backend.gpus or backend.replicas"
                    )

    def _single(self) -> str | None:
        """Return why this backend cannot be replicated behind the router, or None."""
        if not self.launches:
            return f"{self.url} is launched by others"
        if self.traits.timed_inside:
            return f"{self.name} is timed inside its own process"
        if self.api in ("tgi", *TYPED_APIS):
            return f"the router passes completions and chat, and {self.name} speaks {self.api}"
        return None if self.port is None else f"they cannot share backend.port={self.port}"

    def command(self, launch: Launch) -> list[str]:
        """The command line that starts the engine in the foreground."""
        raise NotImplementedError

    def flag_arguments(self, launch: Launch, ours: Mapping[str, Any]) -> list[str]:
        """Return our settings and the user's flags, which override them, as command-line arguments."""
        return cli({**ours, **self.flags_on(launch)}, self.flag_rules.table)

    def environment(self, launch: Launch) -> dict[str, str]:
        """Environment variables that the engine gets in addition to the inherited ones."""
        return {"OMP_NUM_THREADS": str(launch.threads), **self.environ}

    def key_headers(self) -> dict[str, str]:
        """The header with the key of an endpoint, as this machine's environment has it."""
        return {}

    def unavailable(self, host: Host) -> str | None:
        """Return why this engine cannot run on such a host, with the remedy, in one line, or None."""
        if self.launches and host.platform != "linux":
            return f"{self.name} can be launched on Linux only: run sweep on Linux, or in a Linux container"
        if self.traits.needs_gpu and self.launches and not host.gpus:
            attach = "backend.url" if self.traits.attachable else "backend=openai backend.url"
            return (
                f"{self.name} needs a CUDA GPU: run sweep on a machine that has one, or attach to an engine that runs "
                f"elsewhere with {attach}=http://HOST:PORT"
            )
        return None

    def in_bfloat16(self, dtype: str) -> bool:
        """Return whether the engine computes in bfloat16 when the model is to be computed in this format."""
        return (dtype if self.dtype == "auto" else self.dtype) == "bfloat16"

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        """The folder to load: the model's own, or a conversion, made once by `python`. Raises ValueError or OSError."""
        return model

    def gpus_unused(self, log: str) -> str | None:
        """Return the line of a GPU launch's log by which it computes elsewhere than on its GPUs; None without one."""
        lines = map(self.log.message, log.splitlines())
        unused = re.compile("|".join(self.log.gpus_unused) or "(?!)")
        return next((line for line in lines if unused.search(line)), None)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str | None:
        """Return why an engine in an image gets no weights, with the remedy; None if it does, or that is unknown."""
        return None

    def facts(self, launch: Launch) -> dict[str, Any]:
        """Facts to cite in addition to version and command line, e.g. whether the prefix cache is on."""
        return {}

    def coarser(self, launch: Launch) -> str | None:
        """Return a format of weights or KV cache that is declared coarser than the model's, or None."""
        formats = [self.facts(launch).get("quantization")]
        formats += [value for name, value in self.flags_on(launch).items() if COARSE_FLAG.search(name)]
        return next((str(name) for name in formats if name and str(name).lower() not in WIDE_FORMATS), None)

    def weight_format(self, launch: Launch) -> str | None:
        """Return the format of the stored weights, as the engine calls it; None means the compute format."""
        stored = self.facts(launch).get("quantization")
        return None if stored is None else str(stored)

    def reserved_tokens(self, context: int) -> int | None:
        """Return the tokens that the KV cache holds from the launch on; None: as many as memory allows."""
        return None

    def streams_at_once(self) -> int | None:
        """Return the most separate requests that it computes together; None: no fixed number."""
        return None

    def memory_share(self, launch: Launch) -> float | None:
        """Return the share of a GPU's memory that it takes at the launch; None: it allocates as needed."""
        return None

    def flags_for(self, platform: Platform) -> dict[str, Any]:
        """The flags of a platform, merged over the flags for any platform."""
        return (self.cuda_flags if platform == "cuda" else self.cpu_flags) | self.flags

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        """All flags of a launch; a draft model that they name becomes its path on this node."""
        flags = self.flags_for("cuda" if launch.gpus else "cpu")
        return flags if launch.draft is None else self.flag_rules.with_draft(flags, str(launch.draft))

    def draft(self, platform: Platform) -> tuple[str, str | None] | None:
        """Return the draft model that the flags name, a repository or a folder, with its revision, or None."""
        return self.flag_rules.draft_model(self.flags_for(platform))


def without_secrets(named: dict[str, Any]) -> dict[str, Any]:
    """Return the settings unchanged. Raises ValueError for a secret: configuration is written into every result."""
    for name, value in named.items():
        if path := secret_within(name, value):
            raise ValueError(
                f"{path} looks like a secret, and what is configured is written into every result; "
                "put it in the environment (api_key_env=NAME for an endpoint's key)"
            )
    return named


def _host_sources(library: str) -> list[Path]:
    """Our sources that run in the engine's process: the host, the library's file, and what they import of ours."""
    sources: set[Path] = set()
    pending = ["backends.host.__main__", library]
    while pending:
        path = HOST / f"{pending.pop().removeprefix('backends.host.').replace('.', '/')}.py"
        if path not in sources and path.is_file():  # a library of the user's own is elsewhere
            sources.add(path)
            imports = re.findall(r"^from (backends\.host[\w.]*) import (\w+)", path.read_text(), re.MULTILINE)
            pending += [name for module, member in imports for name in (module, f"{module}.{member}")]
    return sorted(sources)


class Hosted(Backend):
    """A library served by `python -m backends.host`; `flags` are keyword arguments of its own loading function."""

    library: ClassVar[str]  # e.g. "backends.host.libraries.transformers_library"
    wire = Wire(show_special={"skip_special_tokens": False}, samples=False)
    max_batch: PositiveInt = 1  # most queued prompts joined into one batch; 1: requests are served one by one

    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    metric_names: dict[str, str] = metrics("host_", "kv_cache_bytes", *QUEUE, *TORCH_MEMORY)

    def digest(self) -> str:
        """The digest of the host's source, which is part of the measured system."""
        content = "".join(path.read_text() for path in _host_sources(self.library))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def command(self, launch: Launch) -> list[str]:
        arguments = {
            "library": self.library,
            "model": str(launch.model),
            "served-name": launch.served_name,
            "host": launch.host,
            "port": launch.port,
            "max-batch": self.max_batch,
            "max-model-len": launch.max_model_len,
            "device": "cuda" if launch.gpus else "cpu",
            "dtype": launch.dtype,
            "seed": launch.seed,
            "flags": self.flags_on(launch),
        }
        return [launch.python, "-m", "backends.host", *cli(arguments)]

    def environment(self, launch: Launch) -> dict[str, str]:
        # The host is ours and needs nothing but the standard library and what the engine's environment has.
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **super().environment(launch)}


def cli(flags: Mapping[str, Any], table: EngineTable | None = None) -> list[str]:
    """`{max-num-seqs: 256, enforce-eager: true, x: false, y: null, s: {a: 1}}` as command-line arguments.

    True is a bare flag, false and null leave it out, a mapping or list becomes JSON. With the engine's table, false is
    `--no-x` if the engine has that flag, and a list becomes several values if it takes them.
    """
    arguments: list[str] = []
    for key, value in flags.items():
        if value is False and table and f"no-{key}" in table.flags:
            arguments.append(f"--no-{key}")
        if value is None or value is False:
            continue
        arguments.append(f"--{key}")
        if table and isinstance(value, list) and str(table.flags.get(key)).endswith("+"):
            arguments += map(str, value)
        elif value is not True:
            arguments.append(json.dumps(value) if isinstance(value, dict | list) else str(value))
    return arguments

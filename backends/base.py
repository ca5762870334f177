"""A backend: the adapter to install, launch, health-check and read one kind of engine. See docs/backends.md."""

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
from sweep.base.records import TYPED_APIS, Api, BatchForm, ProxyUse, proxy_of

HOST = Path(__file__).resolve().parent / "host"
QUEUE = ("requests_running", "requests_waiting")  # metrics of all libraries served in-process
TORCH_MEMORY = ("allocated_memory_bytes", "reserved_memory_bytes")  # metrics of libraries that run on torch

FLAG_KEYS = ("flags", "cpu_flags", "cuda_flags")  # configuration keys that hold a backend's flags
Platform = Literal["cpu", "cuda"]
AMPERE = "8.0"  # the lowest compute capability with bfloat16

Runtime = Literal["docker", "podman", "apptainer"]
Progress = Callable[[str], None]  # receives a few words about the current step

COARSE_FLAG = re.compile(r"^(kv[-_]?cache[-_]dtype|cache[-_]type[-_][kv]|quant(ization|ize|_policy))$")
WIDE_FORMATS = {"auto", "none", "f32", "f16", "bf16", "float", "float32", "float16", "bfloat16", "half"}


class SourceBuild(Strict):
    """Programs compiled with CMake. A source distribution's archive only supplies their source."""

    sdist: str  # pinned requirement, e.g. "llama-cpp-python==0.3.36"
    folder: str = "."  # folder in the archive that has CMakeLists.txt
    targets: tuple[str, ...] = ()  # executables to build, the first of which is the engine; empty: nothing is compiled
    options: dict[str, str | bool] = Field(default_factory=dict)  # CMake's -D options
    cpu_options: dict[str, dict[str, str | bool]] = Field(default_factory=dict)  # options by feature in /proc/cpuinfo
    architectures: str | None = None  # CMake's option that names the GPUs to compile for; None: the program uses no GPU
    keep: tuple[str, ...] = ()  # files and folders next to CMakeLists.txt to copy into share/


class EnvironmentLock(Strict):
    """The exact distributions of an environment on one platform."""

    target: str  # the platform, e.g. "linux-x86_64-cuda13-python3.12"
    pins: tuple[str, ...]  # e.g. "torch==2.13.0"


class EnvironmentSpec(Strict):
    """A named set of requirements (conf/environment/<name>.yaml), or a program that the user installed."""

    name: str
    python: str | None = None  # the user's interpreter, with nothing to install; or the interpreter in an image
    binary: str | None = None  # the user's executable, or an executable in an image
    image: str | None = None  # a container image, "name:tag" or "name@sha256:…"; nothing is installed
    runtime: Runtime | None = None  # runs the image; None: the node's first of docker, podman, apptainer
    cache: str = "/var/cache/sweep"  # folder in an image for compiled code, kept between launches
    shm_size: str = "16g"  # an image's shared memory, through which an engine's processes communicate
    python_version: str | None = None  # e.g. "3.11"; None: the orchestrator's version
    machine: str | None = None  # the nodes' architecture, e.g. "aarch64", if it is not the orchestrator's
    requirements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # distributions to omit, even if others depend on them
    torch: Platform | None = None  # which build of torch; None: the index decides
    cuda: Literal[12, 13] | None = None  # CUDA major version of the builds; None: no CUDA, or the index decides
    glibc: str = "2.28"  # oldest glibc with which the wheels run
    capability: str | None = None  # oldest GPUs with kernels, e.g. "8.0"; None: any GPU that its CUDA supports
    note: str | None = None  # a further requirement that no program can check
    needs: dict[str, str] = Field(default_factory=dict)  # programs (or Python.h) that it needs, each with its remedy
    driver: str | None = None  # oldest NVIDIA driver, e.g. "535"; None: the oldest for its CUDA major version
    environ: dict[str, str] = Field(default_factory=dict)  # environment variables of the engine
    environ_older_driver: dict[str, str] = Field(default_factory=dict)  # more, if the driver is older than its CUDA
    disk_gb: float | None = None  # approximate size on a node's disk, in GB
    substitutes: str | None = None  # why it replaces the environment for any GPU; set when it is chosen
    index: tuple[str, ...] = ()  # package indexes needed in addition to the user's
    optional: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # further requirements by engine feature
    compiled: tuple[str, ...] = ()  # distributions to compile after the others, against them
    imports: tuple[str, ...] = ()  # modules that compile themselves on their first import, which comes last
    source: SourceBuild | None = None  # a program to build as well
    lock: EnvironmentLock | None = None  # the exact distributions; None: not resolved yet
    plain: "EnvironmentSpec | None" = None  # environment to use instead if dispensable optional parts fail
    content: dict[str, str] = Field(default_factory=dict)  # digests of the user's python and binary when planned

    @field_validator("index")
    @classmethod
    def _without_password(cls, index: tuple[str, ...]) -> tuple[str, ...]:
        for url in index:
            if urlsplit(url).password:
                raise ValueError("contains a password; put this index into pip's settings instead")
        return index


class EnvironmentChoice(Strict):
    """The environment in which an engine runs: a named environment per platform, unless the user provides one."""

    cpu: str | None = None  # name of a conf/environment/*.yaml
    cuda: str | None = None
    cuda12: str | None = None  # the same engine built for CUDA 12, for nodes whose driver or GPU is too old for `cuda`
    image: str | None = None  # a container image with the engine, "name:tag" or "name@sha256:…"
    runtime: Runtime | None = None  # for an image: docker, podman or apptainer; null: the first that a node has
    python: str | None = None  # the user's own interpreter, with the engine installed
    binary: str | None = None  # the user's own executable, e.g. of llama-server
    extras: tuple[str, ...] = ()  # optional parts of the environment to install even if the flags need none
    inherit: tuple[str, ...] = ()  # further variables for the engine to inherit; PREFIX_* means all with that prefix


def metrics(prefix: str, *names: str, **renamed: str) -> Any:
    """Return a default for `metric_names`: `prefix` plus sweep's name, or plus its `renamed` name."""
    theirs = dict(zip(names, names, strict=True)) | renamed
    return Field(default_factory=lambda: {ours: prefix + name for ours, name in theirs.items()})


@dataclass(frozen=True)
class Host:
    """Facts of a node that decide whether a backend can run on it. None means unknown."""

    platform: str = "linux"
    gpus: tuple[str, ...] = ()  # accelerator names, e.g. "NVIDIA L4"
    executables: frozenset[str] = frozenset()  # those of EXECUTABLES that are on PATH, e.g. "docker"
    driver: str | None = None  # NVIDIA's driver, e.g. "550.54.15"
    capability: str | None = None  # lowest compute capability of its GPUs, e.g. "8.9"
    nvcc: str | None = None  # CUDA release of the compiler on PATH, e.g. "13.0"
    glibc: str | None = None  # version of glibc, e.g. "2.36"
    python: str | None = None  # version of Python, e.g. "3.11"
    machine: str | None = None  # architecture, e.g. "x86_64"
    free_disk: int | None = None  # free bytes on the cache's disk
    broken_driver: str | None = None  # NVML's error, with the remedy; if set, all other facts are unset
    cpu_features: frozenset[str] | None = None  # CPU features as in /proc/cpuinfo, e.g. "avx512f"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """All settings of one engine launch. A backend turns them into a command line."""

    model: Path  # folder in Hugging Face layout
    served_name: str
    port: int = 0  # 0: `server.running` finds a free one
    workdir: Path  # the attempt's folder, in which engine.log is written
    python: str = "python"  # interpreter of the engine's environment
    binary: str | None = None
    image: str | None = None  # image for the engine's container: its digest, or the path of apptainer's file
    runtime: Runtime | None = None
    cache: Path | None = None  # folder on this machine that is mounted as `image_cache`
    image_cache: str | None = None
    shm_size: str = "16g"
    host: str = "127.0.0.1"
    gpus: tuple[str, ...] = ()  # ids for CUDA_VISIBLE_DEVICES; empty on a CPU
    threads: int = 1  # number of CPU threads that the engine may use
    cpus: tuple[int, ...] = ()  # cores to which its processes are bound; empty: all
    environ: Mapping[str, str] = field(default_factory=dict)  # variables that the environment sets for the engine
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    draft: Path | None = None  # folder of the draft model that the flags name
    replica: str = ""  # e.g. "replica 2 of 3", if a deployment has several engines


class TokenPrices(Strict):
    """Prices per million tokens, in USD."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class Backend(Strict):
    """The adapter for one kind of engine. Subclasses add fields and override methods."""

    flag_rules: ClassVar[FlagRules] = FlagRules()
    log: ClassVar[LogReading] = LogReading()
    wire: ClassVar[Wire] = Wire()
    traits: ClassVar[Traits] = Traits()

    name: str
    env: EnvironmentChoice = Field(default_factory=EnvironmentChoice)  # environments: {cpu, cuda, python, binary}
    flags: dict[str, Any] = Field(default_factory=dict)  # passed to the engine, in the engine's own spelling
    cpu_flags: dict[str, Any] = Field(default_factory=dict)  # defaults without a GPU; `flags` override them
    cuda_flags: dict[str, Any] = Field(default_factory=dict)  # defaults on a GPU; `flags` override them
    environ: dict[str, str] = Field(default_factory=dict)  # additional environment variables of the engine
    dtype: str = "auto"  # number format, by the engine's name for it; auto: the engine chooses
    gpus: PositiveInt = 1  # GPUs of one engine (its tensor-parallel size); ignored on a CPU
    replicas: PositiveInt = 1  # engines of one deployment, behind the gateway's router
    port: int | None = Field(default=None, ge=1, le=65535)  # null: any free port
    launch_timeout: PositiveFloat = 900.0  # seconds within which the engine must be ready
    stop_grace: PositiveFloat = 5.0  # seconds between SIGTERM and SIGKILL
    extra_body: dict[str, Any] = Field(default_factory=dict)  # added to every request body
    headers: dict[str, str] = Field(default_factory=dict)  # added to every request's HTTP headers; not for secrets

    # The engine's API, for the client.
    api: Api = "completions"  # completions | chat | responses | messages | tgi: the protocol of the requests
    batch_form: BatchForm = "streams"  # list | streams: a batch is one call with a list of prompts, or many streams
    token_ids: bool = True  # whether the engine accepts prompts as token ids
    continuous_usage: bool = False  # whether the engine accepts stream_options.continuous_usage_stats
    ignores_eos: bool = True  # whether the engine accepts ignore_eos

    # Where sweep reads the engine. metric_names maps sweep's names (sweep/node/telemetry.py) to Prometheus names.
    url: str | None = None  # URL of a running endpoint; then nothing is launched
    api_key_env: str | None = None  # NAME of the environment variable that holds the endpoint's key
    price_per_hour: PositiveFloat | None = None  # USD for the endpoint, or per GPU if `gpus` says how many it has
    price_per_million_tokens: TokenPrices | None = None  # USD, for an endpoint billed by token
    verify_tls: bool = True  # whether this machine must trust the endpoint's certificate
    proxy: ProxyUse = "none"  # environment: requests go through the environment's proxy, except on loopback
    reset_paths: tuple[str, ...] = ()  # paths to POST to between trials, to clear the engine's prompt caches
    metrics_path: str | None = "/metrics"  # path of the engine's Prometheus metrics
    metric_names: dict[str, str] = Field(default_factory=dict)  # sweep's name of a metric -> the engine's name

    @model_validator(mode="before")
    @classmethod
    def _fit_the_api(cls, fields: Any) -> Any:
        without = dict.fromkeys(("token_ids", "ignores_eos", "continuous_usage"), False)
        return fields | without if isinstance(fields, dict) and fields.get("api") in TYPED_APIS else fields

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if self.price_per_hour and self.price_per_million_tokens:
            raise ValueError("price_per_hour and price_per_million_tokens: expected at most one of the two")
        if self.proxy != "none" and self.launches:
            raise ValueError(f"proxy={self.proxy}: only for an endpoint; this machine launches the engine")
        if (self.price_per_hour or self.price_per_million_tokens) and self.launches:
            raise ValueError(
                "price_per_hour and price_per_million_tokens: only for an endpoint; for an engine that sweep "
                "launches, set hardware.price_per_hour"
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
        except ValueError as error:  # e.g. unclosed brackets, or a port that is not a number
            raise ValueError(f"{error}; {allowed}") from None
        if not re.fullmatch(r"[!-~]*", url):
            raise ValueError(f"{allowed} in printable ASCII, others as %XX")
        if parts.username or parts.password:
            raise ValueError("holds credentials; put the key into an environment variable named by api_key_env")
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
        """Return the paths to POST to, to clear all caches; empty if the engine would still remember earlier trials."""
        return self.reset_paths

    @property
    def launches(self) -> bool:
        """Whether sweep launches the engine (else it attaches to a running endpoint)."""
        return self.url is None

    @property
    def gpus_of_engine(self) -> int:
        """Return the GPUs that one engine uses: its tensor-parallel size times its other parallel sizes."""
        return self.gpus * math.prod(self._parallel_sizes().values())

    def _parallel_sizes(self) -> dict[str, int]:
        """Return the factors by which flags, in any spelling, multiply an engine's GPUs, by configuration key."""
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
        return self.replicas * self.gpus_of_engine

    @property
    def gpu_keys(self) -> tuple[str, ...]:
        """Return the keys to lower so that a deployment needs fewer GPUs."""
        sizes = {"backend.gpus": self.gpus, "backend.replicas": self.replicas, **self._parallel_sizes()}
        return tuple(key for key, size in sizes.items() if size > 1)

    def features(self) -> tuple[str, ...]:
        """Return the features of this configuration that may need optional distributions in the environment."""
        return ()

    def check(self) -> None:
        """Raise a one-line ValueError, with the key and what was expected, if fields contradict each other."""
        if self.url is not None and not self.traits.attachable:
            raise ValueError(
                f"backend.url={self.url}: sweep launches {self.name}; set backend=openai to attach to an endpoint"
            )
        if self.batch_form == "list" and self.api != "completions":
            raise ValueError(f"backend.api={self.api}: allows one prompt per call; set backend.batch_form=streams")
        if self.traits.most_gpus is not None and self.gpus > self.traits.most_gpus:
            raise ValueError(
                f"backend.gpus={self.gpus}: {self.name} uses only one GPU; expected 1 "
                f"(for several engines behind one URL: backend.replicas={self.gpus})"
            )
        if self.replicas > 1 and (problem := self._single()):
            raise ValueError(f"backend.replicas={self.replicas}: {problem}; expected 1")
        for group in FLAG_KEYS:
            for name, value in getattr(self, group).items():
                if setter := self.flag_rules.setter(name, value):
                    raise ValueError(f"backend.{group}.{name}={value}: sweep sets this flag; set {setter} instead")
                if self.flag_rules.reaches_beyond(name, value):
                    raise ValueError(
                        f"backend.{group}.{name}={value}: reaches beyond the node and GPUs leased to this deployment; "
                        "for more GPUs on its node set backend.gpus or backend.replicas"
                    )

    def _single(self) -> str | None:
        """Return why this backend cannot be replicated behind the router, or None if it can."""
        if not self.launches:
            return f"sweep does not launch {self.url}"
        if self.traits.timed_inside:
            return f"{self.name} is timed in-process"
        if self.api in ("tgi", *TYPED_APIS):
            return f"the router supports completions and chat, but {self.name} speaks {self.api}"
        return None if self.port is None else f"they cannot share backend.port={self.port}"

    def command(self, launch: Launch) -> list[str]:
        """Return the command line that starts the engine in the foreground."""
        raise NotImplementedError

    def flag_arguments(self, launch: Launch, ours: Mapping[str, Any]) -> list[str]:
        """Return sweep's settings (`ours`), overridden by the user's flags, as command-line arguments."""
        return cli({**ours, **self.flags_on(launch)}, self.flag_rules.table)

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the engine's environment variables in addition to the inherited ones."""
        return {"OMP_NUM_THREADS": str(launch.threads), **self.environ}

    def key_headers(self) -> dict[str, str]:
        """Return the header with the endpoint's key, read from this machine's environment."""
        return {}

    def unavailable(self, host: Host) -> str | None:
        """Return in one line why this engine cannot run on a host, with the remedy, or None if it can."""
        if self.launches and host.platform != "linux":
            return f"{self.name} can be launched only on Linux; run sweep on Linux or in a Linux container"
        if self.traits.needs_gpu and self.launches and not host.gpus:
            attach = "backend.url" if self.traits.attachable else "backend=openai backend.url"
            return (
                f"{self.name} needs a CUDA GPU: run sweep on a machine that has one, or attach to an engine on "
                f"another machine with {attach}=http://HOST:PORT"
            )
        try:
            proxy_of(self.url or "", self.proxy)
        except ValueError as error:
            return f"backend.proxy=environment: {error}"
        return None

    def in_bfloat16(self, dtype: str) -> bool:
        """Return whether the engine computes in bfloat16, given the model's `dtype`."""
        return (dtype if self.dtype == "auto" else self.dtype) == "bfloat16"

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        """Return the folder to load: the model, or its conversion made once by `python`. Raises ValueError, OSError."""
        return model

    def gpus_unused(self, log: str) -> str | None:
        """Return the log line which shows that a GPU launch does not compute on its GPUs, or None."""
        lines = map(self.log.message, log.splitlines())
        unused = re.compile("|".join(self.log.gpus_unused) or "(?!)")
        return next((line for line in lines if unused.search(line)), None)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str | None:
        """Return why an engine in an image cannot get its weights, with the remedy; None if it can, or if unknown."""
        return None

    def facts(self, launch: Launch) -> dict[str, Any]:
        """Return facts to record in addition to version and command line, e.g. whether the prefix cache is on."""
        return {}

    def stated(self, get: Callable[[str], dict[str, Any]], model: str) -> dict[str, Any]:
        """Return facts that the running engine reports about its model; `get` returns the response to GET on a path."""
        models = get("/v1/models").get("data") or [{}]
        return {"max_model_len": models[0].get("max_model_len")}

    def coarser(self, launch: Launch) -> str | None:
        """Return the declared format of weights or KV cache if coarser than the model's, else None."""
        formats = [self.facts(launch).get("quantization")]
        formats += [value for name, value in self.flags_on(launch).items() if COARSE_FLAG.search(name)]
        return next((str(name) for name in formats if name and str(name).lower() not in WIDE_FORMATS), None)

    def weight_format(self, launch: Launch) -> str | None:
        """Return the engine's name for the stored weights' format; None: the format in which it computes."""
        stored = self.facts(launch).get("quantization")
        return None if stored is None else str(stored)

    def reserved_tokens(self, context: int) -> int | None:
        """Return how many tokens the KV cache reserves at launch; None: as many as memory allows."""
        return None

    def streams_at_once(self) -> int | None:
        """Return the maximum number of separate requests that the engine runs together; None: no fixed number."""
        return None

    def memory_share(self, launch: Launch) -> float | None:
        """Return the share of a GPU's memory that the engine reserves at launch; None: it allocates as needed."""
        return None

    def flags_for(self, platform: Platform) -> dict[str, Any]:
        """Return the flags for a platform, including the flags for any platform."""
        return (self.cuda_flags if platform == "cuda" else self.cpu_flags) | self.flags

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        """Return all flags of a launch, with a draft model as its path on this node."""
        flags = self.flags_for("cuda" if launch.gpus else "cpu")
        return flags if launch.draft is None else self.flag_rules.with_draft(flags, str(launch.draft))

    def draft(self, platform: Platform) -> tuple[str, str | None] | None:
        """Return the draft model in the flags (a repository or folder) and its revision; None if no flag names one."""
        return self.flag_rules.draft_model(self.flags_for(platform))


def without_secrets(named: dict[str, Any]) -> dict[str, Any]:
    """Return the settings unchanged. Raises ValueError for a secret, since results record the configuration."""
    for name, value in named.items():
        if path := secret_within(name, value):
            raise ValueError(
                f"{path} looks like a secret, and every result records the configuration; "
                "put it into the environment (api_key_env=NAME for an endpoint's key)"
            )
    return named


def _host_sources(library: str) -> list[Path]:
    """Return sweep's sources that run in the engine's process: backends/host, the library's file, and its imports."""
    sources: set[Path] = set()
    pending = ["backends.host.__main__", library]
    while pending:
        path = HOST / f"{pending.pop().removeprefix('backends.host.').replace('.', '/')}.py"
        if path not in sources and path.is_file():  # a user's library is in another folder
            sources.add(path)
            imports = re.findall(r"^from (backends\.host[\w.]*) import (\w+)", path.read_text(), re.MULTILINE)
            pending += [name for module, member in imports for name in (module, f"{module}.{member}")]
    return sorted(sources)


class Hosted(Backend):
    """A library served in-process (`backends.host`). `flags` are keyword arguments of its loading function."""

    library: ClassVar[str]  # e.g. "backends.host.libraries.transformers_library"
    wire = Wire(show_special={"skip_special_tokens": False}, samples=False)
    max_batch: PositiveInt = 1  # maximum queued prompts in one batch; 1: requests are served one by one

    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    metric_names: dict[str, str] = metrics("host_", "kv_cache_bytes", *QUEUE, *TORCH_MEMORY)

    def digest(self) -> str:
        """Return a digest of the code in backends/host, which runs in the measured process."""
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
        # backends/host belongs to sweep and needs only the standard library and the engine's environment.
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **super().environment(launch)}


def cli(flags: Mapping[str, Any], table: EngineTable | None = None) -> list[str]:
    """Turn `{max-num-seqs: 256, enforce-eager: true, x: false, y: null, s: {a: 1}}` into command-line arguments.

    True gives a bare flag, false and null omit the flag, and a mapping or list becomes JSON. With the engine's table,
    false gives `--no-x` if the engine has this flag, and a list gives several values if the flag accepts them.
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

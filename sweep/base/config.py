"""The schema of a configuration: the settings of a run, and objects built from `_target_` mappings.

Everything that a user typed is checked here, before anything starts. A mistake is a ConfigError: one line with the key,
the value and what was expected.
"""

import dataclasses
import difflib
import hashlib
import importlib
import json
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sweep.base.records import Timeouts

Configured = TypeVar("Configured", bound=BaseModel)

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
ISSUE_AGAIN = 75  # exit status (sysexits: a temporary failure) of a run that the same command can continue
OUR_ERROR = 70  # exit status of an unexpected error (sysexits: an error inside the software)
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's error types for an unknown key
_PYDANTICS_OWN = re.compile(r"[^\w-]|^constrained-")  # a type in a pydantic error's location, not a key
ADDRESS = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*:(?P<port>[0-9]{1,5})", re.ASCII)
MOST_ECHOED = 80  # characters of a value in a message
MOST_ALLOWED = 400  # characters of the list of expected names in a message
REPORT_FILE = "report.html"
LONGEST_FOLDER_NAME = 255  # bytes of a file or folder name, on every file system that Linux mounts by default
LARGEST_NUMBER = 10**9  # the largest number that a key accepts: 31 years in seconds
UNBOUNDED = ("seed", "fault_seed", "parameters", "rope_theta")  # keys that accept larger numbers
PASSED_ON = dict[str, Any]  # the type of settings passed unchanged to an engine: numbers may be bytes
PERCENTILES = (50.0, 90.0, 95.0, 99.0)
RACED = "output_throughput"  # the quantity of race=true
NAMED_GROUPS = ("backend", "model", "workload", "load")  # config groups with a column each for the name of the option
POINT_GROUPS = (*NAMED_GROUPS, "gateway")  # config groups that make up a point of an experiment
RUN_GROUPS = ("hardware", "cluster", "tracking")  # config groups with one value for the whole run
GROUPS = POINT_GROUPS + RUN_GROUPS


class ConfigError(ValueError):
    """Bad input, in one line with the key, the value and what was expected. Exit status 2."""


class Halted(Exception):
    """The sweep cannot continue until someone follows the message; then the same command resumes it."""


class Unforeseen(Exception):
    """An internal error during planning, in one line that names the file with the traceback. Exit status 70."""


class DamagedFile(Exception):
    """A file of a run that cannot be read, e.g. because it is cut short; the message names the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # the arguments that Ray pickles
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be read ({self.reason})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty (as in some Ray errors)."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(value: object) -> str:
    """Return a value for a message: one line of at most MOST_ECHOED characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= MOST_ECHOED else f"{text[: MOST_ECHOED - 3]}..."


class Strict(BaseModel):
    """A configuration object: unknown keys are rejected, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    removed: ClassVar[Mapping[str, str]] = {}  # keys of versions before 0.2.0, and what replaced them

    @classmethod
    def removal(cls, key: str) -> str | None:
        """Return the reason for rejecting a removed key, with its replacement; None for any other key."""
        return f"this key was removed in 0.2.0; {cls.removed[key]}" if key in cls.removed else None


Price = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Hardware(Strict):
    """The hardware that a deployment is placed on, and its price per hour."""

    name: str
    platform: Literal["cpu", "cuda"]
    accelerator: str | None = None  # Ray's accelerator type, e.g. "L4"; null: a CPU, or any GPU
    matches: tuple[str, ...] = ()  # NVML's names of this GPU, for hardware=auto
    price_per_hour: Price | None = None  # USD per accelerator (per machine on a CPU); null: no cost is reported
    price_source: str | None = None
    gpu_memory: PositiveFloat | None = None  # GiB of one accelerator, as CUDA reports it; NVML reports more
    bandwidth: PositiveFloat | None = None  # GB/s of that memory
    flops: dict[str, PositiveFloat] = {}  # TFLOP/s of dense matrix products of one accelerator, by number format
    figures_source: str | None = None  # source of memory, bandwidth and FLOP/s
    cpus: PositiveInt | None = None  # of the machine that costs `price_per_hour`
    memory: PositiveFloat | None = None  # GiB, of the same machine

    assumed: ClassVar[bool] = False  # picked by hardware=auto (FoundHardware)


class FoundHardware(Hardware):
    """The hardware profile that hardware=auto picked. Used for engines that sweep launches, never for an endpoint."""

    assumed: ClassVar[bool] = True


class SimulatedNodes(Strict):
    """A hypothetical cluster, used to estimate how long a plan would take on it."""

    nodes: int = Field(gt=0, le=10_000)
    gpus: int = Field(ge=0, le=10_000)  # per node
    accelerator: str | None = None  # None: the accelerator named by `hardware`
    cpus: PositiveInt = 64  # per node
    driver: str | None = None  # NVIDIA driver on each node, e.g. "550"; None: new enough for everything
    capability: str | None = None  # compute capability of the GPUs, e.g. "8.9"; None: high enough for everything
    seconds_per_trial: PositiveFloat | None = None  # assumed duration if there is no history; None: unknown
    seconds_per_launch: NonNegativeFloat = 60.0  # assumed duration, as above


class NodeType(Strict):
    """A kind of node that an autoscaler can start."""

    gpus: NonNegativeInt
    cpus: PositiveInt
    accelerator: str | None = None
    driver: str | None = None  # NVIDIA driver on it, e.g. "580"; None: unknown until it joins


class Cluster(Strict):
    """The place where deployments run: a Ray started for this run, an existing Ray cluster, or this process."""

    name: str
    kind: Literal["local", "ray", "inline"]
    address: str | None = None
    labels: dict[str, str] = {}  # only nodes with these Ray labels are used; a value may be !x, in(x,y), !in(x,y)
    node_types: tuple[NodeType, ...] | None = None  # what an autoscaler can start; None: read Ray's launcher file
    wait_for_nodes: NonNegativeFloat = 900.0  # s that a deployment waits for a node that could run it
    shared_machine: str | None = None  # a name shared by sweeps and nodes that are on one machine on purpose
    simulate: SimulatedNodes | None = None  # with dry_run=true: a cluster for which to estimate the duration
    replay: str | None = None  # table of measured rows that answers in place of engines, on the nodes of `simulate`

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        """Reject a malformed address: Ray would try for minutes to reach it."""
        if address in (None, "auto"):
            return address
        match = ADDRESS.fullmatch(str(address))
        if match is None or not 0 < int(match["port"]) < 1 << 16:
            raise ValueError("expected HOST:PORT of a Ray head, or auto")
        return address

    @model_validator(mode="after")
    def _address_has_effect(self) -> Self:
        if self.address is not None and self.kind != "ray":
            raise ValueError(f"address={self.address} has no effect with cluster={self.name}; needs cluster=ray")
        if self.replay is not None and self.simulate is None:
            raise ValueError(f"replay={self.replay}: expected the nodes as well, e.g. simulate={{nodes: 1, gpus: 8}}")
        return self


class Tracking(Strict):
    """The service, if any, that tracks trials in addition to the files in `out`."""

    name: str
    kind: Literal["none", "wandb"]
    project: str = "sweep"
    entity: str | None = None
    trials: bool = True  # a tracker run for each trial, in addition to the sweep's


class Client(Strict):
    """The measuring client."""

    processes: PositiveInt | Literal["auto"] = "auto"
    timeouts: Timeouts = Timeouts()


class Quiet(Strict):
    """Limits on the load from other processes that a trial tolerates, and the wait for a quieter node."""

    foreign_cpu: float = Field(default=0.1, gt=0, le=1)  # share of the engine's cores; its GPUs must be free
    within: NonNegativeFloat = 600.0  # s


class Durations(Strict):
    """How long the unmodified experiment takes, in seconds; used for the estimate before its first run."""

    machine: str = Field(min_length=1)  # the node type on which the durations were measured
    set_up: NonNegativeFloat = 0.0  # of sweep itself
    environments: NonNegativeFloat = 0.0  # of all engines
    model: NonNegativeFloat = 0.0  # fetching and converting its weights
    reference: NonNegativeFloat = 0.0  # computing the reference answers, which engines are compared with
    comparison: NonNegativeFloat = 0.0  # comparing one deployment's answers with the reference
    launches: dict[str, NonNegativeFloat]  # by the backend's name
    trial: PositiveFloat  # mean duration


class CapacitySearch(Strict):
    """A search for the highest rate within the SLO, in place of a grid of loads."""

    budget: float = Field(default=480.0, gt=0, allow_inf_nan=False)  # measuring time, s; typed as 90s, 8m or 2h
    trials: PositiveInt | None = None  # most probes; null: only the budget ends a search
    max_failed: float | None = Field(default=None, gt=0, lt=1)  # a bound: the most requests that may fail; or as 1%

    @field_validator("max_failed", mode="before")
    @classmethod
    def _as_share(cls, typed: Any) -> Any:
        return _fraction(typed)

    @field_validator("budget", mode="before")
    @classmethod
    def _in_seconds(cls, budget: Any) -> Any:
        duration = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(budget), re.ASCII)
        return float(duration[1]) * {"s": 1, "m": 60, "h": 3600}[duration[2]] if duration else budget


CAPACITIES = ("capacity", "capacity_per_gpu")
ASKED_BUDGET = 240.0  # s; of each search of a question about a capacity, if none is set


class Asked(Strict):
    """A question in place of a grid: its best point by a quantity, within a tolerance, at a confidence."""

    best: str = Field(min_length=1)
    within: float = Field(default=0.05, ge=0.01, le=0.5)  # typed as a share, or as 5%
    sure: float = Field(default=0.95, ge=0.5, le=0.99)
    search: Literal["model", "optuna"] = "model"
    slo: Any = None  # as `slo`, which it sets

    @property
    def of_capacity(self) -> bool:
        """Whether each launch is a search for its capacity."""
        return self.best in CAPACITIES

    @field_validator("within", "sure", mode="before")
    @classmethod
    def _as_share(cls, typed: Any) -> Any:
        return _fraction(typed)

    @field_validator("slo")
    @classmethod
    def _bounds(cls, typed: Any) -> Any:
        return slo_in_units(read_slo(typed))


def _fraction(typed: Any) -> Any:
    percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(typed), re.ASCII)
    return float(percent[1]) / 100 if percent else typed


def read_slo(typed: Any) -> dict[str, float] | None:
    """Return the bounds in `ttft=200ms,tpot.p90=0.05s`, or in an equivalent mapping, in seconds.

    Raises:
        ConfigError: for an unknown latency, or a bound without a unit.
    """
    if typed is None:
        return None
    if isinstance(typed, str):
        if not all("=" in pair for pair in typed.split(",")):
            raise ConfigError(f"{shortened(typed)}: expected bounds such as ttft=200ms,tpot.p90=0.05s")
        typed = dict(pair.partition("=")[::2] for pair in typed.split(","))
    if not isinstance(typed, Mapping):
        raise ConfigError("expected bounds such as ttft=200ms,tpot.p90=0.05s")
    return {str(latency).strip(): _seconds(str(latency).strip(), limit) for latency, limit in typed.items()}


def split_bound(name: str) -> tuple[str, float | None]:
    """Return the latency and the percentile of a bound's name: ("ttft", 90.0) of `ttft.p90`; None if it has none."""
    latency, _, percentile = name.partition(".p")
    return latency, float(percentile) if percentile else None


def _seconds(latency: str, limit: Any) -> float:
    percentile = re.fullmatch(r"(?:ttft|tpot|e2el)(?:\.p(\d{1,2}(?:\.\d+)?))?", latency, re.ASCII)
    if not percentile or float(percentile[1] or 1) == 0:
        raise ConfigError(f"{shortened(latency)}: expected ttft, tpot or e2el, with a percentile as in ttft.p90")
    typed = shortened(limit).strip()
    match = re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?) ?(ms|s)?", typed, re.ASCII)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else 0
    if match and not match[2]:
        raise ConfigError(f"{latency}={typed}: expected a unit: {typed}ms or {typed}s")
    if not 0 < seconds <= LARGEST_NUMBER:
        raise ConfigError(f"{latency}={typed}: expected a time above 0 with its unit, such as 200ms or 0.2s")
    return seconds


def _raced_quantity(typed: Any) -> Any:
    """Return the quantity of `race=true` (throughput), of `race=false` (None), or the typed quantity."""
    return {True: RACED, False: None}[typed] if isinstance(typed, bool) else typed


def slo_in_units(slo: Mapping[str, float] | None) -> dict[str, str] | None:
    """Return the bounds with units, as in a configuration; recorded bounds are in seconds."""
    return None if slo is None else {latency: f"{seconds!r}s" for latency, seconds in slo.items()}


# Settings of a run that cannot change what a trial measures, and those that have separate columns in a row.
NOT_OF_A_ROW = {
    *("name", "out", "cluster", "tracking", "baseline", "replicates", "dry_run", "details", "fresh", "relock"),
    *("retry", "retry_failed", "patience", "durations", "study_differences", "attempts", "deadline", "relaunch"),
    *("form", "slo", "capacity", "percentiles", "metrics", "cache_dir", "race", "ask"),
}


class Settings(Strict):
    """Everything about a run that is not part of a point. None of it can change a trial's result, except where noted.

    The comments in conf/config.yaml explain the keys.
    """

    removed: ClassVar[Mapping[str, str]] = {"not_as_published": "write study_differences"}

    name: str = Field(pattern=r"^\w[\w .+-]*$")
    out: str = Field(min_length=1)
    hardware: Hardware
    cluster: Cluster
    tracking: Tracking
    baseline: dict[str, Any] | None = None
    replicates: int = Field(default=1, gt=0, le=10_000)
    seed: NonNegativeInt = 0
    form: Literal["default", "published"] = "default"
    dry_run: bool = False
    details: bool = False
    fresh: bool = False
    relock: bool = False
    retry: Literal["in_run", "next_run", "none"] = "in_run"
    retry_failed: bool = False
    patience: NonNegativeFloat = 1800.0
    durations: dict[str, Durations] | None = None
    study_differences: dict[str, tuple[str, ...]] = {}  # deviations from the original study, with reasons, by backend
    attempts: PositiveInt = 3
    stall_timeout: PositiveFloat = 600.0
    trial_timeout: PositiveFloat | None = None
    deadline: str | None = None
    relaunch: Literal["auto", "once", "per_replicate"] = "auto"
    max_failed: float = Field(default=0.05, ge=0, lt=1)
    quiet: Quiet | None = None
    slo: Annotated[
        dict[str, float] | None,
        BeforeValidator(read_slo),
        PlainSerializer(slo_in_units, return_type=dict[str, str] | None),
    ] = None  # s
    capacity: CapacitySearch | None = None
    race: Annotated[str | None, BeforeValidator(_raced_quantity)] = None
    ask: Asked | None = None
    percentiles: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(PERCENTILES, min_length=1)
    metrics: Literal["sweep", "vllm"] = "sweep"
    report: bool = True
    agreement: bool = True
    comparison_limit: PositiveFloat = 300.0
    gate: dict[Literal["quality", "agreement"], Annotated[float, Field(gt=0, le=1)]] | None = None
    cache_dir: str | None = None
    telemetry_interval: PositiveFloat = 0.5
    client: Client = Client()

    @property
    def engineless(self) -> bool:
        """Whether no engine will run, so that nothing is resolved or locked: a dry run, or a replay."""
        return self.dry_run or self.cluster.replay is not None

    @field_validator("deadline", mode="before")
    @classmethod
    def _is_a_time(cls, deadline: Any) -> str | None:
        if deadline is None:
            return None
        if isinstance(deadline, int):  # YAML reads 20:10 without quotes as 1210 minutes
            raise ValueError('put a time of day in quotes: "08:00"')
        next_time(str(deadline), datetime.now())
        return str(deadline)


def next_time(deadline: str, now: datetime) -> datetime:
    """Parse a deadline in local time: HH:MM (the next after `now`) or an ISO date-time; else raises ValueError."""
    try:
        if len(deadline) <= len("08:00:00"):
            at = datetime.combine(now.date(), time.fromisoformat(deadline))
            return at if at > now else at + timedelta(days=1)
        return datetime.fromisoformat(deadline).astimezone().replace(tzinfo=None)
    except ValueError:
        raise ValueError("expected a time of day (08:00) or a date with a time (2026-11-22T08:00)") from None


def cache_directory(setting: str | None) -> Path:
    """Return the node-local folder of environments, weights and conversions: the setting, else $XDG_CACHE_HOME/sweep.

    Raises:
        ConfigError: if a component of the path is too long.
    """
    if setting:
        if any(len(os.fsencode(part)) > LONGEST_FOLDER_NAME for part in Path(setting).parts):
            raise ConfigError(f"cache_dir={shortened(setting)}: a folder name is over {LONGEST_FOLDER_NAME} bytes long")
        return Path(setting).expanduser()
    home = os.path.expanduser("~")  # unchanged for a user without a home, who must not get a folder of that name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.devnull if home == "~" else home, ".cache"), "sweep")


def run_folder(run: str | Path) -> Path:
    """Return a run's folder from a user's argument: a path, a name under results/, or the path of its report.

    Raises:
        ConfigError: for anything that cannot be a folder's name, e.g. an object store's URL.
    """
    if "://" in str(run):
        needed = "this command needs a local folder; sweep copy URL FOLDER copies the run"
        raise ConfigError(f"RUN={shortened(run)}: {needed}")
    folder = Path(run)
    if folder.name == REPORT_FILE:
        folder = folder.parent
    try:
        return folder if folder.exists() else Path("results") / folder
    except OSError as error:
        raise ConfigError(f"RUN={shortened(run)}: {error.strerror}") from None


def import_path() -> str:
    """Return a PYTHONPATH that lets a child process import this code."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def content_hash(value: Any, length: int = 12) -> str:
    """Return a hash of a JSON-able value that does not depend on the order of its keys."""
    document = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(document.encode()).hexdigest()[:length]


def parent_mapping(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping that contains, or will contain, the last part of a dotted key.

    Mappings along the path are copied, since other points may share them.

    Raises ConfigError if an earlier part of the key holds something other than a mapping.
    """
    parents, mapping = key.split(".")[:-1], settings
    for depth, part in enumerate(parents, start=1):
        child = mapping.get(part)
        if child is not None and not isinstance(child, Mapping):
            raise ConfigError(f"{key}: {'.'.join(parents[:depth])} is a value and has no keys")
        mapping[part] = dict(child or {})
        mapping = mapping[part]
    return mapping


def locate(target: str, key: str) -> type[BaseModel]:
    """Return the class that a `_target_` names. Raises ConfigError if there is no such module or class."""
    module, _, attribute = target.rpartition(".")
    try:
        located = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target!r}: no such class ({error})") from None
    if not (isinstance(located, type) and issubclass(located, BaseModel)):
        raise ConfigError(f"{key}._target_={target!r}: not a configuration class")
    return located


def build(mapping: Mapping[str, Any], key: str) -> BaseModel:
    """Build the object that the `_target_` mapping at `key` describes. ConfigError if its class rejects a value."""
    fields = dict(mapping)
    target = fields.pop("_target_", None)
    if not isinstance(target, str):
        raise ConfigError(f"{key}._target_={target!r}: expected the dotted name of a class")
    return validate(locate(target, key), fields, key)


def validate(kind: type[Configured], fields: Mapping[str, Any], key: str) -> Configured:
    """Return `kind(**fields)`. Raises ConfigError with the dotted key, its value and what was expected."""
    try:
        built = kind.model_validate(dict(fields))
    except ValidationError as error:
        raise ConfigError(_one_line(error, kind, key)) from None
    _refuse_odd_numbers(fields, built, key, LARGEST_NUMBER if key in ("", *GROUPS) else math.inf)
    return built


def _refuse_odd_numbers(typed: Any, built: Any, key: str, largest: float) -> None:
    """Reject values that pydantic wrongly accepts as numbers: `true`, inf, nan and absurdly large numbers."""
    if isinstance(built, int | float) and not isinstance(built, bool):
        if isinstance(typed, bool):
            raise ConfigError(f"{key}={typed}: input should be a number")
        if not math.isfinite(built):
            raise ConfigError(f"{key}={typed}: input should be a finite number")
        if abs(built) > largest and key.rpartition(".")[2] not in UNBOUNDED:
            raise ConfigError(f"{key}={shortened(typed)}: expected numbers of at most {largest:,}")
    elif isinstance(typed, Mapping):
        for part, value in typed.items():
            if isinstance(built, BaseModel) and type(built).model_fields[part].annotation == PASSED_ON:
                continue
            inner = built.get(part) if isinstance(built, Mapping) else getattr(built, str(part), None)
            _refuse_odd_numbers(value, inner, f"{key}.{part}".strip("."), largest)
    elif isinstance(typed, list | tuple) and isinstance(built, list | tuple):
        for value, inner in zip(typed, built, strict=False):
            _refuse_odd_numbers(value, inner, key, largest)


def _one_line(error: ValidationError, kind: type[BaseModel], key: str) -> str:
    # An unknown key is probably a misspelt required key: report only the unknown one.
    first = min(error.errors(), key=lambda problem: problem["type"] not in UNKNOWN_KEY)
    where = ".".join([key, *(str(part) for part in first["loc"] if not _PYDANTICS_OWN.search(str(part)))]).strip(".")
    value = shortened(repr(first["input"]))
    if first["type"] in UNKNOWN_KEY:
        owner = _owner_at(kind, first["loc"][:-1])
        name = where.rpartition(".")[2]
        if isinstance(owner, type) and issubclass(owner, Strict) and (reason := owner.removal(name)):
            return f"{where}={value}: {reason}"
        keys = _keys_of(owner)
        return f"{where}={value}: unknown key" + (f"; {did_you_mean(name, keys)}" if keys else "")
    if first["type"] == "missing":
        return f"{where}: required, but not given"
    # If a key accepts several types, pydantic reports an error for each type.
    siblings = [problem for problem in error.errors() if problem["loc"] and problem["loc"][:-1] == first["loc"][:-1]]
    kinds = [problem["msg"] for problem in siblings if _PYDANTICS_OWN.search(str(problem["loc"][-1]))]
    message = " or ".join(dict.fromkeys(kinds or [first["msg"]])).removeprefix("Value error, ")
    if message.split()[0].istitle():  # but not a variable's name: HF_TOKEN
        message = message[0].lower() + message[1:]
    return f"{where}={value}: {message}"


def _owner_at(kind: Any, path: Sequence[int | str]) -> Any:
    """Return the class of the nested configuration object at this path, so that a message can list its keys."""
    for part in path:
        kind = typing.get_type_hints(kind).get(str(part)) if isinstance(kind, type) else None
        kind = next((part for part in typing.get_args(kind) if isinstance(part, type) and part is not type(None)), kind)
    return kind


def _keys_of(kind: Any) -> list[str]:
    """Return the keys of a class of configuration objects; an empty list for anything else."""
    if not isinstance(kind, type):
        return []
    if issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def one_of(key: str, value: object, allowed: Iterable[object]) -> ConfigError:
    """Return the ConfigError for a value that is not among the allowed values."""
    return ConfigError(f"{key}={shortened(value)}: unknown; {did_you_mean(value, allowed)}")


def did_you_mean(value: object, allowed: Iterable[object], also: Iterable[str] = ()) -> str:
    """Return "did you mean ...?" with the nearest name (from `allowed` and `also`), then the allowed names."""
    names = sorted(str(name) for name in allowed)
    name = nearest(value, [*names, *also])
    listed = ", ".join(names)
    if len(listed) > MOST_ALLOWED:
        listed = f"{listed[:MOST_ALLOWED].rpartition(', ')[0]}, ..."
    return (f"did you mean {name}? " if name else "") + f"expected: {listed}"


def nearest(value: object, names: Iterable[str]) -> str | None:
    """Return the name most similar to a mistyped name; None if no name is similar."""
    return next(iter(difflib.get_close_matches(str(value), list(names), 1, cutoff=0.75)), None)

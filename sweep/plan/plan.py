"""The plan: the ordered, validated Deployments and Trials that an experiment expands to. `planning` makes it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from backends.base import EnvironmentSpec
from backends.declarations import NOT_IN_ID
from sweep.base.config import Hardware, Settings, content_hash
from sweep.base.records import LOAD_COLUMNS
from sweep.base.setting_labels import dotted

LATER_KEYS = ("temperature", "models", "speed", "repeat", "truncate", "context", "started", "primed")
"""Keys that are not part of an id if they are not set, so that ids from before they existed stay valid."""


@dataclass(frozen=True)
class Trial:
    """One deployment, workload, load and replicate."""

    trial_id: str
    workload: Any  # a sweep.inputs.workload object
    load: Any  # a sweep.inputs.load object
    replicate: int
    seed: int  # seed of prompts and arrivals: equal for all backends, different for each load and replicate
    coordinates: dict[str, Any]  # this trial's values on the experiment's axes
    config: dict[str, Any]  # resolved
    content: dict[str, str] = field(default_factory=dict)  # digests of the files that its configuration refers to
    label: str = ""  # label that distinguishes it within its deployment, without the replicate

    @property
    def num_requests(self) -> int:
        """The number of measured requests: the workload's, rounded to whole batches if the load sends batches."""
        return int(self.load.count(self.workload.num_requests))

    def mode(self) -> Any:
        """Return the mode that sends its requests: a sweep.client.modes object."""
        count, seed = self.num_requests, self.seed
        mode = self.load.mode(count, seed, self.workload.starts(count, seed))
        return mode.branching(self.workload.branches(count, seed))

    def load_columns(self) -> dict[str, Any]:
        """The load's columns in a trials row: batch_size, concurrency (users) and rate (requests/s)."""
        return {key: getattr(self.load, key, None) for key in LOAD_COLUMNS}

    def describe(self) -> str:
        """Return a short description: `qa batches of 8 output_tokens=64 replicate 0`."""
        return f"{self.describe_point()} replicate {self.replicate}"

    def describe_point(self) -> str:
        """Return a short description that all replicates of a point share: `qa batches of 8 output_tokens=64`."""
        return self.label or self.name

    @property
    def name(self) -> str:
        """The names of workload and load."""
        return f"{self.workload.name} {self.load.describe()}"


@dataclass(frozen=True)
class Deployment:
    """One engine, model, flags and GPU count to launch, with its trials in running order."""

    deployment_id: str
    backend: Any  # a backends.base.Backend
    model: Any  # a sweep.inputs.model object
    gpu_count: int
    accelerator: str | None
    trials: list[Trial] = field(default_factory=list)
    unavailable: str | None = None  # why it cannot run on this host, with the remedy
    notes: tuple[str, ...] = ()  # notes for the plan about the build or format used on the nodes
    content: dict[str, str] = field(default_factory=dict)  # digests of its files: weights, this project's code
    environment: EnvironmentSpec | None = None  # the engine's environment, composed here: nodes lack the user's conf/
    label: str = ""  # label that distinguishes it within the plan
    draft: Any = None  # a sweep.inputs.model object: the draft model named in the engine's flags
    gateway: Any = None  # a sweep.gateway.settings.Gateway in front of the engine
    replicate: int | None = None  # the replicate of its trials, if each replicate has its own launch
    searched: Mapping[str, Any] = field(default_factory=dict)  # a probe's id -> the LaunchSearch that continues with it

    def describe(self) -> str:
        """Return a short description: `vllm tiny-llama max-num-seqs=2`."""
        return self.label or self.name

    @property
    def name(self) -> str:
        """The names of backend and model."""
        return f"{self.backend.name} {self.model.name}"

    @property
    def launch_key(self) -> str:
        """The key of a launch: the deployment's id, plus the replicate if each replicate is launched separately."""
        return self.deployment_id if self.replicate is None else f"{self.deployment_id}-{self.replicate}"

    def describe_launch(self) -> str:
        """Return a short description of a launch: `vllm tiny-llama max-num-seqs=2 replicate 1`."""
        return self.describe() if self.replicate is None else f"{self.describe()} replicate {self.replicate}"

    def points(self) -> list[list[Trial]]:
        """Return the trials of each point, with all its replicates."""
        replicates: dict[str, list[Trial]] = {}
        for trial in self.trials:
            replicates.setdefault(trial.describe_point(), []).append(trial)
        return list(replicates.values())

    def facts(self, trial: Trial) -> dict[str, Any]:
        """Return what identifies a point, by column or dotted key: names, the load's columns, axes and settings."""
        names = {"backend": self.backend.name, "model": self.model.name}
        names |= {"workload": trial.workload.name, "load": trial.load.name}
        machine = {"accelerator": self.accelerator, "gpu_count": self.gpu_count}
        return dotted(trial.config) | trial.load_columns() | trial.coordinates | names | machine

    def launches(self, per_replicate: bool) -> "list[Deployment]":
        """Return a copy of the deployment for each launch (the unit of scheduling), with the launch's trials."""
        replicates = sorted({trial.replicate for trial in self.trials})
        if not (per_replicate and len(replicates) > 1):
            return [self]
        return [
            replace(self, trials=[trial for trial in self.trials if trial.replicate == replicate], replicate=replicate)
            for replicate in replicates
        ]


@dataclass(frozen=True)
class Plan:
    """The deployments and trials to run, in order."""

    settings: Settings
    deployments: list[Deployment]
    axes: list[str]  # the grid axes, as dotted keys
    replaced: list[str]  # descriptions of replacements for lack of a GPU
    origins: dict[str, str] = field(default_factory=dict)  # options in the user's own folders -> their files

    @property
    def trials(self) -> list[Trial]:
        return [trial for deployment in self.deployments for trial in deployment.trials]

    @property
    def launches(self) -> list[Deployment]:
        """The launches of every deployment."""
        per_replicate = launched_per_replicate(self.settings, len(self.deployments))
        return [launch for deployment in self.deployments for launch in deployment.launches(per_replicate)]

    def add(self, deployment: Deployment, trial: Trial) -> None:
        """Add a trial of a deployment that is not in the plan yet: the plan of a search grows with its launches."""
        planned = next((each for each in self.deployments if each.deployment_id == deployment.deployment_id), None)
        if planned is None:
            planned = replace(deployment, trials=[], searched={}, replicate=None)
            self.deployments.append(planned)
        if all(each.trial_id != trial.trial_id for each in planned.trials):
            planned.trials.append(trial)

    @property
    def study_differences(self) -> dict[str, tuple[str, ...]]:
        """The plan's differences from the published study, by backend. Without a GPU a different form is run."""
        if self.settings.hardware.platform != "cuda":
            return {}
        backends = {deployment.backend.name for deployment in self.deployments}
        return {name: reasons for name, reasons in self.settings.study_differences.items() if name in backends}

    def entries(self, command: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of plan.jsonl: the experiment, then every deployment, each followed by its trials."""
        yield {
            "kind": "experiment",
            "name": self.settings.name,
            "baseline": self.settings.baseline,
            "axes": self.axes,
            "trials": len(self.trials),
            "replicates": self.settings.replicates,
            "launches": len(self.launches),
            "replaced": self.replaced,
            "study_differences": self.study_differences,
            "origins": self.origins,
            "command": command,
            "hardware": self.settings.hardware.model_dump(),
        }
        for deployment in self.deployments:
            yield {
                "kind": "deployment",
                "deployment_id": deployment.deployment_id,
                "label": deployment.describe(),
                "backend": deployment.backend.name,
                "model": deployment.model.name,
                "gpu_count": deployment.gpu_count,
                "accelerator": deployment.accelerator,
                "unavailable": deployment.unavailable,
            }
            for trial in deployment.trials:
                yield {
                    "kind": "trial",
                    "trial_id": trial.trial_id,
                    "deployment_id": deployment.deployment_id,
                    "label": trial.describe(),
                    "workload": trial.workload.name,
                    "load": trial.load.name,
                    **trial.load_columns(),
                    "replicate": trial.replicate,
                    "seed": trial.seed,
                    "coordinates": trial.coordinates,
                    "config": trial.config,
                }


def identity_of(built: Any, digest: str | None) -> str:
    """Return the hash of a part's type, fields and content: everything that can change a result."""
    fields = built.model_dump(mode="json", exclude=NOT_IN_ID)
    fields = {key: field for key, field in fields.items() if key not in LATER_KEYS or not _is_default(built, key)}
    return content_hash([type(built).__qualname__, fields, digest])


def judging(settings: Settings) -> dict[str, Any]:
    """Return the run settings that do change a row: request time-outs, and the rules by which trials are judged."""
    judged_by = settings.model_dump(mode="json", include={"max_failed"})
    if settings.gate:
        judged_by["gate"] = settings.gate
    return judged_by | {"timeouts": asdict(settings.client.timeouts)}


def trial_id_of(
    deployment_id: str, parts: Sequence[str], replicate: int, seed: int, own_launch: bool, judged_by: Mapping[str, Any]
) -> str:
    """Return a trial's id; `parts` are the identities of its workload and load, `judged_by` is from `judging`."""
    launch = "its own" if own_launch else "shared"
    return content_hash([deployment_id, *parts, replicate, seed, launch, judged_by])


def _is_default(built: Any, key: str) -> bool:
    return bool(getattr(built, key) == type(built).model_fields[key].get_default(call_default_factory=True))


def launched_per_replicate(settings: Settings, deployments: int) -> bool:
    """Return whether each replicate is launched separately, so that its spread includes the difference between
    launches. By default this is true if deployments are compared: two launches of one engine can easily differ as much
    as two engines.
    """
    return settings.relaunch == "per_replicate" or (settings.relaunch == "auto" and deployments > 1)


def config_text(config: Mapping[str, Any]) -> str:
    """Return a resolved config as the text stored in a row: equal settings give equal text."""
    return json.dumps(config, sort_keys=True, default=str)


def hourly_price(backend: Any, hardware: Hardware) -> float | None:
    """Return an engine's price in USD per GPU and hour: the endpoint's, else the hardware's; None if unknown."""
    if not backend.launches and (backend.price_per_hour or backend.price_per_million_tokens):
        price: float | None = backend.price_per_hour
        return price
    return None if elsewhere(backend, hardware) else hardware.price_per_hour


def elsewhere(backend: Any, hardware: Hardware) -> bool:
    """Return whether an engine runs on unknown hardware: an endpoint, while `hardware` describes this machine."""
    return hardware.assumed and not backend.launches

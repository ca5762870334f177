"""The work assigned to a node, and the prepared node and running engine that carry it out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from backends.base import Launch
from backends.launch.server import Engine
from backends.prepare.environments import Environment
from sweep.base.config import Settings, cache_directory
from sweep.disk.run_files import RunPaths
from sweep.gateway.process import RunningGateway
from sweep.plan.plan import Deployment


@dataclass(frozen=True)
class Work:
    """The input of a task: a launch of a deployment with its pending trials, and where its files go."""

    deployment: Deployment
    settings: Settings
    out: str  # absolute
    attempt: str
    axes: tuple[str, ...]
    run: str = "run"  # the run's unique name, used in the markers of its engines
    deadline: float | None = None  # s since the epoch; a trial starts only if it is expected to end by then
    expected: Mapping[str, float] = field(default_factory=dict)  # trial id -> seconds, if earlier runs measured it
    patience: float = 0.0  # s of outage during which preparing the node is retried

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(self.out))

    @property
    def folder(self) -> Path:
        """The folder of this attempt's files."""
        return self.paths.attempt(self.deployment.deployment_id, self.attempt)

    @property
    def cache(self) -> Path:
        """The folder on this node for environments, weights and conversions."""
        return cache_directory(self.settings.cache_dir)

    @property
    def marker(self) -> str:
        """The marker that identifies all processes started for this attempt's engine on its node."""
        return f"{self.run}/{self.deployment.deployment_id}/{self.attempt}"


@dataclass(frozen=True)
class PreparedNode:
    """A node with everything the engine needs: environment, weights, and cores for it and for the client."""

    launch: Launch
    environment: Environment
    client_cpus: set[int]
    name: str


@dataclass(frozen=True)
class RunningEngine:
    """The engine that trials are measured on, or its replicas behind a gateway, and the node where they run."""

    node: PreparedNode
    engines: tuple[Engine, ...]
    facts: Mapping[str, Any]  # facts that the engine reports
    launch: str | None = None  # id of this start of the engine; None if it was not launched here
    gateway: RunningGateway | None = None  # the gateway in front of the engine

    @property
    def engine(self) -> Engine:
        """The first engine, which represents all replicas where one is enough."""
        return self.engines[0]

    @property
    def url(self) -> str:
        """The URL to which the client sends requests."""
        return self.engine.url if self.gateway is None else self.gateway.url

    def processes(self) -> list[psutil.Process]:
        front = [] if self.gateway is None else self.gateway.process.processes()
        return [*self.engine_processes(), *front]

    def engine_processes(self) -> list[psutil.Process]:
        return [process for engine in self.engines for process in engine.processes()]

    def processes_known(self) -> bool:
        """Return whether all processes of the engines are known; unknown ones would be taken for other processes."""
        return all(engine.processes_known() for engine in self.engines)

    def alive(self) -> bool:
        """Return whether every engine, and the gateway in front of them, is running."""
        return self.dead() is None and (self.gateway is None or self.gateway.alive())

    def dead(self) -> Engine | None:
        """Return the first engine that has ended; None while all are running."""
        return next((engine for engine in self.engines if not engine.alive()), None)

    def ran_out_of_memory(self, since: Mapping[Path, int]) -> bool:
        """Return whether any engine's log reports running out of memory after its position in `since`."""
        return any(engine.ran_out_of_memory(since[engine.log]) for engine in self.engines)

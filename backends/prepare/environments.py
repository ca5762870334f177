"""Environments of engines: built once per node on first use, by uv, content-addressed, never the orchestrator's own.

    spec = resolve(backend.env, "cpu")
    environment = prepare(spec, cache_dir, print)      # minutes the first time, milliseconds afterwards

uv is fast and can leave out a distribution that others depend on, which pip cannot; it reads no pip.conf, so what the
user has told pip (indexes, find-links, certificate, time-out) is handed over. Settings travel in uv's environment and
not on its command line: an index URL may hold a password.
"""

import ast
import configparser
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from uv import find_uv_bin

from backends.base import EnvironmentChoice, EnvironmentSpec, Platform, Progress
from backends.launch import task
from backends.prepare import sources
from sweep.config import did_you_mean, validate
from sweep.options import ConfigPath

FORMAT = 1  # part of every key: raise it when environments must be built anew
COMPLETE = "complete.json"  # written last, so a build that was killed has none and is repeated


class EnvironmentFailed(Exception):
    """An environment cannot be provided. One line: which one, why, and where the build's log is."""


@dataclass(frozen=True)
class Environment:
    """What an engine is run with."""

    python: str  # interpreter; this process's own where the engine is only a binary
    binary: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # distribution -> exact version
    key: str = ""


def resolve(choice: EnvironmentChoice, on: Platform, options: ConfigPath | None = None) -> EnvironmentSpec:
    """The environment chosen for a platform; the user's own interpreter or binary goes before any.

    Raises ValueError, naming the key, when none is named or the named one does not exist.
    """
    if choice.python or choice.binary:
        return EnvironmentSpec(name="own", python=choice.python, binary=choice.binary)
    name = choice.cuda if on == "cuda" else choice.cpu
    if name is None:
        raise ValueError(
            f"backend.env.{on} names no environment: this engine does not run there unless env.python does"
        )
    options = options or ConfigPath()
    names = options.choices("environment")
    if name not in names:
        raise ValueError(f"backend.env.{on}={name}: no such environment; {did_you_mean(name, names)}")
    spec = validate(EnvironmentSpec, {"name": name, **options.load("environment", name)}, f"environment={name}")
    assert isinstance(spec, EnvironmentSpec)
    return spec


def fingerprint(spec: EnvironmentSpec) -> str:
    """16 hex digits of all that decides what gets installed: known without building anything, so part of trial ids."""
    # Without a source the key is what it was before there were any: environments stay, and so do trial ids.
    content = spec.model_dump(mode="json", exclude=None if spec.source else {"source"}) | {
        "python_version": spec.python_version or ".".join(map(str, sys.version_info[:2])),
        "platform": f"{platform.system()}-{platform.machine()}",
        "format": FORMAT,
    }
    for own in filter(None, (spec.python, spec.binary)):  # what the user has may be another tomorrow, under its name
        found = shutil.which(own)
        content[f"content of {own}"] = _content_of(Path(found)) if found else None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepare(spec: EnvironmentSpec, cache_dir: Path, progress: Progress) -> Environment:
    """The environment, built under `cache_dir`/environments if it is not there yet (one builder at a time per node).

    Raises EnvironmentFailed.
    """
    there = built(spec, cache_dir)  # for those that come after the builder, without a lock
    if there is not None:
        return there
    folder = _folder(spec, cache_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"environment {spec.name}: waiting for its builder"
        with exclusive(folder.with_suffix(".lock"), lambda: progress(waiting)):
            if not (folder / COMPLETE).exists():
                _build(spec, folder, cache_dir, progress)
    except (OSError, sources.BuildFailed) as error:
        raise EnvironmentFailed(f"environment {spec.name} cannot be built in {folder}: {error}") from error
    there = built(spec, cache_dir)
    assert there is not None
    return there


def built(spec: EnvironmentSpec, cache_dir: Path) -> Environment | None:
    """The environment, if nothing needs to be built for it.

    Raises EnvironmentFailed if it is the user's own and does not work.
    """
    key = fingerprint(spec)
    if spec.python or spec.binary:
        return _own(spec, key)
    folder = _folder(spec, cache_dir)
    if not (folder / COMPLETE).exists():
        return None
    binary = str(folder / "bin" / spec.source.targets[0]) if spec.source and spec.source.targets else None
    return Environment(str(folder / "bin" / "python"), binary, json.loads((folder / COMPLETE).read_text()), key)


def _folder(spec: EnvironmentSpec, cache_dir: Path) -> Path:
    machine = f"-{sources.machine(spec.source)}" if spec.source and spec.source.targets else ""
    return cache_dir.expanduser().absolute() / "environments" / f"{spec.name}-{fingerprint(spec)}{machine}"


def _own(spec: EnvironmentSpec, key: str) -> Environment:
    """What the user already has: checked, nothing installed."""
    binary = spec.binary and shutil.which(spec.binary)
    if spec.binary and not binary:
        raise EnvironmentFailed(f"backend.env.binary={spec.binary}: not an executable file")
    python = spec.python and shutil.which(spec.python)
    if spec.python and not python:
        raise EnvironmentFailed(f"backend.env.python={spec.python}: not an executable file")
    versions = installed(python) if python else {}
    return Environment(python or sys.executable, binary, versions, key)


def installed(python: str) -> dict[str, str]:
    """Exact versions of everything that an interpreter can import, as `pip freeze` would list them."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {d.name.lower().replace('_', '-'): d.version for d in m.distributions() if d.name}\n"
        "print(json.dumps({'python': platform.python_version(), **dict(sorted(found.items()))}))"
    )
    # -P: the current folder is not part of that environment.
    answer = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=_environ({}))
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EnvironmentFailed(f"{python} does not work as a Python interpreter: {last}")
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def _content_of(executable: Path) -> list[Any]:
    """What tells a user's executable, or the distributions of an interpreter, from what was there before."""
    status = executable.stat()
    site = executable.parent.parent / "lib"
    distributions = sorted(path.name for path in site.glob("python*/site-packages/*.dist-info"))
    return [status.st_size, status.st_mtime_ns, distributions]


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """An exclusive lock between processes, given back by the kernel if its holder is killed.

    Raises task.Stopped if that comes before the lock.
    """
    with path.open("w") as file:
        if not _locked(file):
            waiting()
            while not _locked(file):
                task.pause(task.STOP_POLL)
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(spec: EnvironmentSpec, folder: Path, cache_dir: Path, progress: Progress) -> None:
    """Resolve, install, verify; `complete.json` last."""
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
    wanted, left_out, lock = (folder / name for name in ("requirements.in", "left-out.txt", "requirements.txt"))
    wanted.write_text("\n".join(spec.requirements) + "\n")
    left_out.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in spec.exclude))
    at = ("--python", str(folder), *no_index)
    resolve_all = ("pip", "compile", *at, "--override", str(left_out), str(wanted), "-o", str(lock))
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
        sources.build(spec.source, folder, _environ({}), log, lambda text: progress(f"environment {spec.name}: {text}"))
        versions["source"] = spec.source.sdist
    partial = folder / f"{COMPLETE}.partial"
    partial.write_text(json.dumps(versions))
    partial.replace(folder / COMPLETE)
    progress(f"environment {spec.name}: ready, {len(versions)} distributions")


def _torch_build(lock: str) -> str | None:
    """Which kind of torch a resolution came to: "cpu", "cuda", or None where there is none (or no choice)."""
    if platform.system() != "Linux":
        return None
    for line in lock.splitlines():
        name, _, version = line.partition("==")
        if name.strip() == "torch":
            return "cpu" if "+cpu" in version else "cuda"
    return None


def _run_uv(name: str, arguments: tuple[str, ...], settings: Mapping[str, str], log: Path, progress: Progress) -> None:
    """Run uv, its lines going to the log and, where they tell of progress, to the user."""
    command = [find_uv_bin(), *arguments]
    lines: list[str] = []
    with log.open("a") as file:
        file.write(f"$ uv {' '.join(arguments)}\n")
        with task.program(
            command, _environ(settings), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                file.write(line)
                lines.append(line.strip())
                if line.startswith(("Downloading", "Resolved", "Prepared", "Installed", "Bytecode", "   Building")):
                    progress(f"environment {name}: {line.strip()}")
    if process.returncode != 0:
        said = " ".join(line.lstrip("×├─▶╰│ ") for line in lines if line)[-300:]
        raise EnvironmentFailed(f"environment {name} cannot be built: {said or 'uv says nothing'}; log: {log}")


def _environ(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would bend another interpreter, plus `settings`."""
    bends = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in bends} | dict(settings)


def pip_settings() -> dict[str, str]:
    """What the user has told pip, by option name ("index-url"): PIP_* before [install] before [global], as pip has it.

    pip itself is asked where it is installed; its files are read where it is not (an environment made by uv).
    """
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if answer.returncode == 0:
        pairs = (line.partition("=") for line in answer.stdout.splitlines() if "=" in line)
        settings = {name.strip(): str(ast.literal_eval(value)) for name, _, value in pairs}
    else:
        settings = _pip_files()
    merged: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        merged |= {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{section}.")}
    return merged


def _pip_files() -> dict[str, str]:
    """pip's configuration files and variables, read as its user guide orders them."""
    home = Path.home()
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / "pip.conf",
        Path(sys.prefix) / "pip.conf",
        Path(os.environ.get("PIP_CONFIG_FILE", os.devnull)),
    ]
    parser = configparser.RawConfigParser()
    parser.read(files)
    settings = {f"{section}.{key}": value for section in parser.sections() for key, value in parser[section].items()}
    variables = {name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name[:4] == "PIP_"}
    return settings | {f":env:.{name}": value for name, value in variables.items() if name != "config-file"}


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """uv's environment variables that say the same as pip's settings; local folders that do not exist are left out."""
    settings = {
        # pip takes the best version over all indexes, uv by default only looks at the first that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", "hardlink"),
        "UV_NO_PROGRESS": "1",
    }

    def give(variable: str, value: str | None) -> None:
        if value and variable not in os.environ:  # what the user has told uv itself goes first
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
    """Whether a URL or folder can be asked: one on the network always, a local one if it is there."""
    parts: Any = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return True
    return Path(unquote(parts.path)).expanduser().exists()

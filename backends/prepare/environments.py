"""Engine environments, built once per node by uv. Equal lockfiles give equal environments on every node."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import EnvironmentChoice, EnvironmentSpec, Host, Platform, Progress, Runtime
from backends.launch import task
from backends.prepare import fit, images, locks, programs, sources
from backends.prepare.build_once import build_once
from backends.prepare.uv import EnvironmentFailed as EnvironmentFailed
from backends.prepare.uv import Uv
from sweep.base.config import ConfigError, did_you_mean, validate
from sweep.base.options import ConfigPath

ENVIRONMENT_FORMAT = 2  # part of every key; raise it when environments must be rebuilt
NOT_INSTALLED = {"environ", "environ_older_driver", "disk_gb"}  # fields that do not affect what is installed
COMPLETE = "complete.json"  # written last, so a build that was killed lacks it and is repeated


class OptionalPartFailed(EnvironmentFailed):
    """The engine needs an optional distribution that cannot be installed on this machine."""


@dataclass(frozen=True)
class Environment:
    """The interpreter or binary that an engine runs with, and the versions in it."""

    python: str  # interpreter; this process's interpreter if the engine is only a binary
    binary: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # distribution -> exact version
    image: str | None = None  # the image that holds the engine: by digest, or apptainer's file
    runtime: Runtime | None = None


def resolve(
    choice: EnvironmentChoice,
    on: Platform,
    options: ConfigPath | None = None,
    features: Iterable[str] = (),
    host: Host | None = None,
) -> EnvironmentSpec:
    """Return the chosen environment's first build that runs on `host`. A program set by the user takes precedence."""
    if choice.image:
        python = choice.python or "python3"
        spec = EnvironmentSpec(
            name="own_image", image=choice.image, runtime=choice.runtime, python=python, binary=choice.binary
        )
        return for_nodes(spec, host)
    if choice.python or choice.binary:
        return EnvironmentSpec(name="own", python=choice.python, binary=choice.binary)
    builds = {"cuda": choice.cuda, "cuda12": choice.cuda12} if on == "cuda" else {"cpu": choice.cpu}
    chosen = {key: name for key, name in builds.items() if name}
    if not chosen:
        cpu = "its environment is for CPUs: set hardware=cpu, or " if choice.cpu else ""
        raise ValueError(
            f"backend.env.{on} names no environment: {cpu}name one, or set backend.env.python to your own interpreter"
        )
    options = options or ConfigPath()
    specs = [
        for_nodes(_composed(key, name, options, {*features, *choice.extras}), host) for key, name in chosen.items()
    ]
    spec = fit.for_driver(fit.choose(specs, host), host)
    return spec.model_copy(update={"runtime": choice.runtime}) if spec.image and choice.runtime else spec


def _composed(key: str, name: str, options: ConfigPath, features: set[str]) -> EnvironmentSpec:
    names = options.choices("environment")
    if name not in names:
        raise ConfigError(f"backend.env.{key}={name}: no such environment; {did_you_mean(name, names)}")
    spec = validate(EnvironmentSpec, {"name": name, **options.load("environment", name)}, f"environment={name}")
    assert isinstance(spec, EnvironmentSpec)
    chosen = sorted(features & set(spec.optional))
    requirements = (*spec.requirements, *(line for feature in chosen for line in spec.optional[feature]))
    return spec.model_copy(update={"name": "+".join([name, *chosen]), "requirements": requirements, "optional": {}})


def for_nodes(spec: EnvironmentSpec, host: Host | None) -> EnvironmentSpec:
    """Return the environment with the nodes' architecture and Python, if this machine has others."""
    if host is None or host.platform != "linux":
        return spec
    stated = {"machine": host.machine, "python_version": None if spec.image or spec.python_version else host.python}
    local = {"machine": platform.machine(), "python_version": locks.python_version(spec)}
    return spec.model_copy(update={key: value for key, value in stated.items() if value and value != local[key]})


def unusable(spec: EnvironmentSpec, host: Host, options: ConfigPath | None = None) -> str | None:
    """Return why an environment cannot be used on a node, with the alternatives that can, or None if it can."""
    return fit.refusal(spec, host, _other_forms(spec, options or ConfigPath()))


def _other_forms(spec: EnvironmentSpec, options: ConfigPath) -> Iterator[EnvironmentSpec]:
    """Yield the other forms of an engine's environment, recognised by name (e.g. `NAME_image`)."""
    name = spec.name.partition("+")[0]
    engine = name.removesuffix("_cuda")
    names = {f"{engine}{form}" for form in ("_cuda", "_cuda12", "_image")} - {name}
    yield from (_composed("cuda", each, options, set()) for each in options.choices("environment") if each in names)


def fingerprint(spec: EnvironmentSpec) -> str:
    """Return 16 hex digits for trial ids, from all that determines the content; provisional until it is locked."""
    content = spec.model_dump(
        mode="json", include={"name", "lock", "compiled", "imports", "source", "python", "binary"}
    )
    # These keys are added only if set, so that environments built without them are not rebuilt.
    content |= {key: value for key, value in (("content", spec.content), ("image", spec.image)) if value}
    if spec.source and spec.source.architectures is None:
        del content["source"]["architectures"]
    if spec.lock is None:
        content |= {"spec": spec.model_dump(mode="json", exclude=NOT_INSTALLED), "target": locks.node_target(spec)}
    content["format"] = ENVIRONMENT_FORMAT
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def own_content(spec: EnvironmentSpec) -> dict[str, str]:
    """Return digests of the user's interpreter (size and distributions) and binary, if they exist."""
    digests: dict[str, str] = {}
    if spec.image:
        return digests
    python, binary = (shutil.which(name) if name else None for name in (spec.python, spec.binary))
    if python:
        distributions = sorted(f"{path.parts[-3]}/{path.name}" for path in programs.distributions(python))
        text = json.dumps([Path(python).stat().st_size, distributions])
        digests["python"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    if binary:
        with Path(binary).open("rb") as file:
            digests["binary"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return digests


def other_platform(spec: EnvironmentSpec) -> str | None:
    """Return how this node differs from the platform that an environment was planned for, or None."""
    if spec.content:
        present = own_content(spec)
        for key, digest in spec.content.items():
            if present.get(key, digest) != digest:
                return f"backend.env.{key}={getattr(spec, key)} on this node differs from the planning machine's"
    target = locks.node_target(spec.model_copy(update={"machine": None}))
    if spec.lock is None or spec.lock.target == target:
        return None
    return f"environment {spec.name} is locked for {spec.lock.target}, this node is {target}"


def prepare(spec: EnvironmentSpec, cache_dir: Path, progress: Progress) -> Environment:
    """Return a locked environment; build it if it does not exist yet. Raises EnvironmentFailed."""
    if environment := built(spec, cache_dir):
        return environment
    if spec.image:
        assert spec.lock is not None, f"environment {spec.name} has no lock"
        images.pull_image(spec, spec.lock.pins[0], cache_dir, progress)
        return _in_image(spec, spec.lock.pins[0], cache_dir)
    folder = _folder(spec, cache_dir)

    def build(partial: Path) -> None:
        partial.write_text(json.dumps(_build(spec, folder, cache_dir, progress)))

    try:
        # Built in place, since its scripts contain its path. Only the file that marks it as complete is renamed.
        build_once(folder / COMPLETE, build, f"environment {spec.name}", progress, folder.with_suffix(".lock"))
    except (OSError, sources.BuildFailed) as error:
        problem = f"environment {spec.name} cannot be built in {folder}: {error}"
        raise EnvironmentFailed(problem, getattr(error, "exit", None) or programs.printed(str(error))) from error
    environment = built(spec, cache_dir)
    assert environment is not None
    return environment


def prepare_or_plain(spec: EnvironmentSpec, cache_dir: Path, progress: Progress) -> Environment:
    """Return the environment, or its plain form if optional parts fail. Raises OptionalPartFailed if it has none."""
    try:
        return prepare(spec, cache_dir, progress)
    except EnvironmentFailed as error:
        if spec.plain is not None:
            progress(f"{error}; continuing with environment {spec.plain.name}")
            return prepare(spec.plain, cache_dir, progress)
        if "+" in spec.name:
            raise OptionalPartFailed(str(error), error.exit) from error
        raise


def is_there(spec: EnvironmentSpec, cache_dir: Path) -> bool:
    """Return whether an environment is known to be complete on this machine."""
    try:
        return not locks.needed(spec) and built(spec, cache_dir) is not None
    except EnvironmentFailed:
        return False


def built(spec: EnvironmentSpec, cache_dir: Path) -> Environment | None:
    """Return the environment if complete, else None. Raises EnvironmentFailed if the user's program does not work."""
    if spec.image:
        image = spec.lock.pins[0] if spec.lock else ""
        there = bool(image) and images.has_image(image, images.runtime(spec), cache_dir)
        return _in_image(spec, image, cache_dir) if there else None
    if spec.python or spec.binary:
        paths = {}
        for key, name in (("binary", spec.binary), ("python", spec.python)):
            paths[key] = name and shutil.which(name)
            if name and not paths[key]:
                raise EnvironmentFailed(f"backend.env.{key}={name}: not an executable file")
        versions = installed(paths["python"]) if paths["python"] else {}
        return Environment(paths["python"] or sys.executable, paths["binary"], versions=versions)
    if locks.needed(spec):
        return None
    folder = _folder(spec, cache_dir)
    if not (folder / COMPLETE).exists():
        return None
    binary = str(folder / "bin" / spec.source.targets[0]) if spec.source and spec.source.targets else None
    versions = json.loads((folder / COMPLETE).read_text())
    return Environment(str(folder / "bin" / "python"), binary, versions=versions)


def _in_image(spec: EnvironmentSpec, image: str, cache_dir: Path) -> Environment:
    program = images.runtime(spec)
    file = str(images.sif(image, cache_dir)) if program == "apptainer" else image
    return Environment(spec.python or "python3", spec.binary, {"image": image}, file, program)


def _folder(spec: EnvironmentSpec, cache_dir: Path) -> Path:
    machine = ""
    try:
        if spec.source and spec.source.targets:
            machine = f"-{sources.machine(spec.source)}"
        elif spec.cuda and (spec.imports or spec.compiled):  # the kernels are compiled for this node's GPUs
            machine = f"-sm{sources.architectures().replace(';', '-')}"
    except sources.BuildFailed as error:
        raise EnvironmentFailed(f"environment {spec.name}: {error}") from None
    return cache_dir.expanduser().absolute() / "environments" / f"{spec.name}-{fingerprint(spec)}{machine}"


def installed(python: str) -> dict[str, str]:
    """Return the exact versions of all distributions that an interpreter can import, as in `pip freeze`."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {d.name.lower().replace('_', '-'): d.version for d in m.distributions() if d.name}\n"
        "print(json.dumps({'python': platform.python_version(), **dict(sorted(found.items()))}))"
    )
    # -P, since the current folder is not part of that environment.
    answer = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=task.clean_environment())
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFailed(f"{python} does not work as a Python interpreter: {last}", programs.printed(last))
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def _build(spec: EnvironmentSpec, folder: Path, cache_dir: Path, progress: Progress) -> dict[str, str]:
    assert spec.lock is not None, f"environment {spec.name} has no lock"
    progress(f"environment {spec.name}: building {folder} ({', '.join(spec.requirements)}); this takes minutes, once")
    if folder.exists():
        shutil.rmtree(folder)  # remains of a build that was killed
    log = folder.with_suffix(".log")
    log.write_text("")
    uv = Uv(spec.name, cache_dir, log, progress, spec.index)
    uv.run("venv", "--no-project", "--python", spec.python_version or sys.executable, str(folder))
    _install(spec, spec.lock.pins, folder, uv)
    python = str(folder / "bin" / "python")
    versions = installed(python)
    if wrong := _not_as_locked(spec.lock.pins, versions):
        raise EnvironmentFailed(f"environment {spec.name} cannot be built as locked: {wrong}; log: {log}")
    sources.complete_toolkit(folder)
    _import(spec, folder, python, log, progress)
    if spec.source:
        environ = task.clean_environment(**task.activated(python))
        sources.build_program(
            spec.source, folder, environ, log, lambda text: progress(f"environment {spec.name}: {text}")
        )
        versions["source"] = spec.source.sdist
    progress(f"environment {spec.name}: ready, {len(versions)} distributions")
    return versions


def _import(spec: EnvironmentSpec, folder: Path, python: str, log: Path, progress: Progress) -> None:
    """Import modules that compile themselves on import, now instead of during a launch. Resumes a killed build."""
    if not spec.imports:
        return
    extensions = folder.with_suffix(".extensions")
    extensions.mkdir(exist_ok=True)
    environ = task.clean_environment(**task.activated(python), TORCH_EXTENSIONS_DIR=str(extensions))
    for module in spec.imports:
        progress(f"environment {spec.name}: importing {module}, which compiles it")
        _run(spec.name, [python, "-P", "-c", f"import {module}"], environ, log)
    extensions.rename(folder / task.EXTENSIONS)


def _install(spec: EnvironmentSpec, pins: Iterable[str], folder: Path, uv: Uv) -> None:
    """Install exactly these distributions: first prebuilt distributions, then distributions compiled against them."""
    late = [pin for pin in pins if pin.partition("==")[0] in spec.compiled]
    first = [pin for pin in pins if pin not in late]
    lock, at = folder / "requirements.txt", ("--python", str(folder), "--compile-bytecode")
    lock.write_text("\n".join(first) + "\n")
    try:
        uv.pip("sync", *at, str(lock))
    except EnvironmentFailed:
        label = next((pin.partition("+")[2] for pin in first if pin.startswith("torch==")), "")
        if not label:
            raise
        # The user's indexes lack this build of torch; PyTorch's index has it.
        uv.pip("sync", *at, str(lock), UV_TORCH_BACKEND=label)
    if late:
        uv.pip("install", *at, "--no-deps", "--no-build-isolation", *late, **task.activated(str(folder / "bin/python")))


def _not_as_locked(pins: Iterable[str], versions: Mapping[str, str]) -> str | None:
    """Return the first distribution that differs from the lock. uv lets `torch==2.13.0` match `2.13.0+cpu`."""
    for name, version in (pin.split("==", 1) for pin in pins if "==" in pin):
        if (present := versions.get(name)) != version:
            return f"{name} is {present or 'missing'}, but {version} in the lock"
    return None


def _run(name: str, command: list[str], environ: Mapping[str, str], log: Path) -> None:
    try:
        programs.run(command, environ, log)
    except programs.ToolFailed as failure:
        problem = f"environment {name} cannot be built: {failure.last}; log: {log}"
        raise EnvironmentFailed(problem, programs.printed(failure.last)) from None

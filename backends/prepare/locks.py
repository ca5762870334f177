"""Lockfiles: an environment's exact distributions on one platform; committed, stored in results, or cached here."""

import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.base import EnvironmentLock, EnvironmentSpec, Progress
from backends.prepare import images
from backends.prepare.programs import printed
from backends.prepare.uv import EnvironmentFailed, Uv
from sweep.base.config import ConfigError, shortened
from sweep.base.options import ConfigPath
from sweep.base.whole_file import write_whole

HEADER = re.compile(r"# lock of (?P<environment>\S+) for (?P<target>\S+), requirements (?P<requirements>[0-9a-f]{16})$")
PIN = re.compile(r"[\w.-]+==[\w.+!-]+")
IMAGE_PIN = re.compile(r"\w[\w.:/-]*@sha256:[0-9a-f]{64}")
LARGEST_LOCK = 1 << 20  # bytes; a lockfile of 1,000 distributions has 30,000
TORCH_BACKENDS: dict[int | None, str] = {12: "cu126", 13: "cu130"}  # uv's names for PyTorch's indexes
# Fields that determine an environment's distributions; other fields determine how they are installed.
DECIDES = {"requirements", "exclude", "torch", "cuda", "index"}


def node_target(spec: EnvironmentSpec) -> str:
    """Return the nodes' platform, e.g. "linux-x86_64-cuda13-python3.12". Engines always run on Linux."""
    own = platform.machine() if platform.system() == "Linux" else "x86_64"
    system = f"linux-{spec.machine or own}"
    if spec.image:
        return f"{system}-image"
    cuda = f"cuda{spec.cuda}" if spec.cuda else "cuda" if spec.torch == "cuda" else "cpu"
    return f"{system}-{cuda}-python{python_version(spec)}"


def python_version(spec: EnvironmentSpec) -> str:
    """Return an environment's Python version, e.g. "3.12": from its setting, the nodes or the orchestrator."""
    return spec.python_version or ".".join(map(str, sys.version_info[:2]))


def file_name(spec: EnvironmentSpec) -> str:
    return f"{spec.name}.{node_target(spec)}.txt"


def is_installed(spec: EnvironmentSpec) -> bool:
    """Return whether sweep installs or pulls this environment by its lockfile (False: the user provides it)."""
    return bool(spec.requirements or spec.image)


def needed(spec: EnvironmentSpec) -> bool:
    """Return whether sweep installs this environment and it has not been locked yet."""
    return is_installed(spec) and spec.lock is None


def text(spec: EnvironmentSpec) -> str:
    """Return the content of a lock file."""
    assert spec.lock is not None
    header = f"# lock of {spec.name} for {spec.lock.target}, requirements {_requirements(spec)}"
    return "\n".join([header, *spec.lock.pins]) + "\n"


def lock_digest(content: str) -> str:
    """Return 16 hex digits for the environment, platform and pins in a lockfile, ignoring the requirements in it."""
    pins = re.sub(r", requirements [0-9a-f]{16}$", "", content, count=1, flags=re.MULTILINE)
    return hashlib.sha256(pins.encode()).hexdigest()[:16]


def foreign_line(file: str, content: str) -> str | None:
    """Return the first line of a lockfile that is not a pin but a URL, path or option, which may install anything."""
    expected = IMAGE_PIN if "-image." in file else PIN
    lines = (line for line in content.splitlines() if line and not line.startswith("#"))
    return next((line for line in lines if not expected.fullmatch(line)), None)


def with_lock(
    spec: EnvironmentSpec, *places: Path | Mapping[str, str], any_requirements: bool = False
) -> EnvironmentSpec:
    """Return the environment with its first lockfile in these folders or texts; unchanged if they have none.

    A text may be someone else's. Raises ConfigError if it has more than pins, unless this machine has the same lock.
    """
    if not needed(spec):
        return spec
    if spec.image and images.DIGEST.match(spec.image) and not any_requirements:
        return spec.model_copy(update={"lock": EnvironmentLock(target=node_target(spec), pins=(spec.image,))})
    name = file_name(spec)
    for place in places:
        if isinstance(place, Path):
            content = (place / name).read_text() if (place / name).is_file() else ""
        else:
            content = place.get(name, "")
        header, *pins = content.splitlines() or [""]
        match = HEADER.match(header)
        fits = match and (any_requirements or match["requirements"] == _requirements(spec))
        if match and fits and match["target"] == node_target(spec):
            if not isinstance(place, Path) and (line := foreign_line(name, content)):
                local = [each / name for each in places if isinstance(each, Path)]
                if not any(path.is_file() and path.read_text() == content for path in local):
                    raise ConfigError(f"lock {name}: {shortened(line)}: expected name==version")
            return spec.model_copy(update={"lock": EnvironmentLock(target=match["target"], pins=tuple(pins))})
    return spec


def committed(options: ConfigPath | None = None) -> list[Path]:
    """Return the lockfile folders next to the environment definitions: the user's, then the built-in one."""
    return [folder / "environment" / "locks" for folder in (options or ConfigPath()).folders]


def remembered(cache_dir: Path) -> Path:
    """Return the folder with lockfiles resolved on this machine."""
    return cache_dir.expanduser().absolute() / "locks"


def locked(spec: EnvironmentSpec, cache_dir: Path, progress: Progress) -> EnvironmentSpec:
    """Return a built-in environment with its lockfile, resolved if missing. Raises EnvironmentFailed."""
    spec = with_lock(spec, *committed(), remembered(cache_dir))
    return resolve_lock(spec, cache_dir, progress) if needed(spec) else spec


def resolve_lock(
    spec: EnvironmentSpec, cache_dir: Path, progress: Progress, preferred: Iterable[str] = ()
) -> EnvironmentSpec:
    """Resolve the environment again, near the `preferred` pins, and cache its lock. Raises EnvironmentFailed."""
    folder = remembered(cache_dir)
    log = folder / f"{file_name(spec)}.log"
    what_for = ", ".join([*spec.requirements, *([spec.image] if spec.image else [])])
    progress(f"environment {spec.name}: resolving {what_for} for {node_target(spec)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        if spec.image:
            pins: tuple[str, ...] = (images.by_digest(spec.image),)
        else:
            with tempfile.TemporaryDirectory() as work:
                uv = Uv(spec.name, cache_dir, log, progress, spec.index)
                pins = _resolved(spec, uv, Path(work), "\n".join(preferred))
        spec = spec.model_copy(update={"lock": EnvironmentLock(target=node_target(spec), pins=pins)})
        write_whole(folder / file_name(spec), text(spec))
    except OSError as error:
        raise EnvironmentFailed(f"environment {spec.name} cannot be resolved: {error}", printed(str(error))) from error
    return spec


def _resolved(spec: EnvironmentSpec, uv: Uv, work: Path, preferred: str) -> tuple[str, ...]:
    requirements, excluded, result = (work / name for name in ("requirements.in", "left-out.txt", "lock.txt"))
    result.write_text(preferred)  # uv keeps versions that its output file already lists
    requirements.write_text("\n".join(spec.requirements) + "\n")
    excluded.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in spec.exclude))
    machine = node_target(spec).split("-")[1]
    nodes = ("--python-platform", f"{machine}-manylinux_{spec.glibc.replace('.', '_')}")
    version = ("--python", sys.executable, "--python-version", python_version(spec))
    plain = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links")
    command = (*version, *nodes, *plain, "--override", str(excluded), str(requirements), "-o", str(result))
    uv.pip("compile", *command)
    if spec.torch and not _fits(torch_build(_pins(result)), spec):
        # The user's indexes lack this build, so PyTorch's index is queried.
        result.write_text(preferred)
        backend = "cpu" if spec.torch == "cpu" else TORCH_BACKENDS.get(spec.cuda, "auto")
        uv.pip("compile", *command, UV_TORCH_BACKEND=backend)
    return _pins(result)


def _fits(build: str | int | None, spec: EnvironmentSpec) -> bool:
    if build is None or spec.torch == "cpu":
        return build in (None, "cpu")
    return build == spec.cuda if spec.cuda else build != "cpu"


def _pins(file: Path) -> tuple[str, ...]:
    lines = (line.split(" ;")[0].strip() for line in file.read_text().splitlines())
    return tuple(line for line in lines if line and not line.startswith(("#", "-")))


def torch_build(pins: Iterable[str]) -> str | int | None:
    """Return the build of torch among these pins: "cpu", the CUDA major, or None if torch is not among them."""
    versions = dict(pin.split("==", 1) for pin in pins if "==" in pin)
    if "torch" not in versions:
        return None
    label = versions["torch"].partition("+")[2]
    if label.startswith("cu"):
        return int(label[2:4])
    if label:
        return label
    runtime = versions.get("nvidia-cuda-runtime")
    return int(runtime.split(".")[0]) if runtime else 12


def _requirements(spec: EnvironmentSpec) -> str:
    content = spec.model_dump(mode="json", include=DECIDES | ({"image"} if spec.image else set()))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

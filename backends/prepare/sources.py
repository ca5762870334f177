"""Compiles engines that no package index has as programs, once per environment, for the node's CPU and GPUs."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from backends.base import Progress, SourceBuild
from backends.launch import gpus
from backends.prepare import programs
from sweep.base.exits import Failed

CPU_INFORMATION = Path("/proc/cpuinfo")
JOB_BYTES = 2 << 30  # memory that one compiler process may need
REPORT_INTERVAL = 10.0  # seconds between two progress messages
ERROR_LINES = 4  # lines of a tool's output to show, from the first error on; CMake explains it on the next lines


class BuildFailed(Failed):
    """A source cannot be fetched or built. The one-line message includes the tool's error."""


def build_program(source: SourceBuild, folder: Path, environ: Mapping[str, str], log: Path, progress: Progress) -> None:
    """Put the executables into `folder`/bin and `source.keep` into `folder`/share. Raises BuildFailed or OSError."""
    work = folder.with_suffix(".source")
    tree = work / "tree"
    environ = {**environ, "PATH": f"{folder / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"}
    if not tree.exists():
        _fetch(source, folder, work, tree, environ, log, progress)
    root = tree / source.folder
    for name in source.keep:
        (folder / "share").mkdir(exist_ok=True)
        (shutil.copytree if (root / name).is_dir() else shutil.copyfile)(root / name, folder / "share" / name)
    if source.targets:
        _compile(source, root, work / "build", folder, environ, log, progress)
    shutil.rmtree(work)


def options(source: SourceBuild, features: frozenset[str] | None = None) -> dict[str, str | bool]:
    """Return CMake's options for a CPU with these features (None: this CPU) and for this machine's GPUs."""
    chosen, present = dict(source.options), cpu_features() if features is None else features
    for feature, more in source.cpu_options.items():
        if feature in present:
            chosen |= more
    if source.architectures:
        chosen[source.architectures] = architectures()
    return chosen


def architectures() -> str:
    """Return the GPUs to compile for, e.g. "80;89": $CUDAARCHS, else this machine's. Raises BuildFailed if none."""
    present = {gpu.capability.replace(".", "") for gpu in gpus.visible()}
    chosen = os.environ.get("CUDAARCHS") or ";".join(sorted(present, key=int))
    if not chosen:
        raise BuildFailed("no GPU to compile for; set CUDAARCHS to a compute capability, e.g. 89")
    return chosen


def complete_toolkit(folder: Path) -> None:
    """Add the links that linkers (libcudart.so) and torch (lib64) expect of a CUDA compiler from NVIDIA's wheels."""
    for compiler in folder.glob("lib/python*/site-packages/nvidia/*/bin/nvcc"):
        libraries = compiler.parents[1] / "lib"
        for library in libraries.glob("lib*.so.*"):
            link = library.with_name(library.name.partition(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(library.name)
        if not libraries.with_name("lib64").exists():
            libraries.with_name("lib64").symlink_to(libraries.name)


def machine(source: SourceBuild) -> str:
    """Return 8 hex digits, equal on machines that would build the same program. Different nodes may share a cache."""
    return hashlib.sha256(json.dumps(options(source), sort_keys=True).encode()).hexdigest()[:8]


def cpu_features() -> frozenset[str]:
    """Return this CPU's features as the kernel lists them, e.g. "avx2"; empty if the kernel lists none."""
    text = CPU_INFORMATION.read_text() if CPU_INFORMATION.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return frozenset(match[1].split() if match else ())


def _fetch(
    source: SourceBuild, folder: Path, work: Path, tree: Path, environ: Mapping[str, str], log: Path, progress: Progress
) -> None:
    """Fetch the source archive and unpack it into `tree`."""
    progress(f"fetching the source of {source.sdist}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    archives = work / "archives"
    # The environment's build backend makes the metadata, so pip needs no second environment.
    pip = [str(folder / "bin" / "python"), "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    _run([*pip, "--no-binary", ":all:", "--dest", str(archives), source.sdist], environ, log, progress)
    (archive,) = archives.iterdir()
    shutil.unpack_archive(archive, archives / "unpacked")  # trusted, as pip trusts packages that it installs
    (top,) = (archives / "unpacked").iterdir()
    top.rename(tree)
    shutil.rmtree(archives)


def _compile(
    source: SourceBuild,
    root: Path,
    built: Path,
    folder: Path,
    environ: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> None:
    """Configure, build at low priority, and move the executables into `folder`/bin."""
    defines = [f"-D{name}={_cmake(value)}" for name, value in options(source).items()]
    _run(["cmake", "-S", str(root), "-B", str(built), "-G", "Ninja", *defines], environ, log, progress)
    jobs = max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().total // JOB_BYTES))
    command = ["nice", "-n", "15", "cmake", "--build", str(built), "-j", str(jobs), "--target", *source.targets]
    begin = time.monotonic()
    _run(command, {**environ, "NINJA_STATUS": "[%f/%t] "}, log, progress)
    progress(f"compiled {', '.join(source.targets)} in {time.monotonic() - begin:.0f} s with {jobs} jobs")
    for target in source.targets:
        (program,) = [path for path in built.rglob(target) if path.is_file() and os.access(path, os.X_OK)]
        shutil.move(program, folder / "bin" / target)


def _cmake(value: str | bool) -> str:
    return ("ON" if value else "OFF") if isinstance(value, bool) else value


def _run(command: list[str], environ: Mapping[str, str], log: Path, progress: Progress) -> None:
    """Run a tool, and report ninja's progress lines ("[12/210] …") from time to time."""
    reported = time.monotonic()

    def report(line: str) -> None:
        nonlocal reported
        if line.startswith("[") and time.monotonic() - reported > REPORT_INTERVAL:
            reported = time.monotonic()
            progress(f"compiling {line.split(']')[0][1:]}")

    try:
        programs.run(command, environ, log, report)
    except programs.ToolFailed as failure:
        lines = failure.lines or ["no output"]
        first = next((number for number, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1)
        message = " ".join(lines[first : first + ERROR_LINES])[:300]
        problem = f"{' '.join(command[:4])} … failed: {message}; log: {log}"
        raise BuildFailed(problem, programs.printed(message)) from None

"""Engines that no package index has as a program: compiled once into their environment, for its CPU and GPUs."""

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
JOB_BYTES = 2 << 30  # of memory that one compiler may need
REPORT_INTERVAL = 10.0  # s
ERROR_LINES = 4  # of a tool's output, from its first error on: CMake explains it on the next lines


class BuildFailed(Failed):
    """A source cannot be fetched or built. One line, with the tool's own error."""


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
    """CMake's options for a CPU with these features (None: this CPU), and for this machine's GPUs."""
    chosen, present = dict(source.options), cpu_features() if features is None else features
    for feature, more in source.cpu_options.items():
        if feature in present:
            chosen |= more
    if source.architectures:
        chosen[source.architectures] = architectures()
    return chosen


def architectures() -> str:
    """Return the GPUs to compile for, e.g. "80;89": $CUDAARCHS, else those here. Raises BuildFailed for none."""
    present = {gpu.capability.replace(".", "") for gpu in gpus.visible()}
    chosen = os.environ.get("CUDAARCHS") or ";".join(sorted(present, key=int))
    if not chosen:
        raise BuildFailed("no GPU to compile for: set CUDAARCHS to its compute capability, e.g. 89")
    return chosen


def complete_toolkit(folder: Path) -> None:
    """Give a CUDA compiler from NVIDIA's wheels what linkers (libcudart.so) and torch (lib64) expect."""
    for compiler in folder.glob("lib/python*/site-packages/nvidia/*/bin/nvcc"):
        libraries = compiler.parents[1] / "lib"
        for library in libraries.glob("lib*.so.*"):
            link = library.with_name(library.name.partition(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(library.name)
        if not libraries.with_name("lib64").exists():
            libraries.with_name("lib64").symlink_to(libraries.name)


def machine(source: SourceBuild) -> str:
    """8 hex digits that are the same where the same program would be built: caches may be shared by unlike nodes."""
    return hashlib.sha256(json.dumps(options(source), sort_keys=True).encode()).hexdigest()[:8]


def cpu_features() -> frozenset[str]:
    """Return the features of this CPU as the kernel lists them, e.g. "avx2"; empty if it lists none."""
    text = CPU_INFORMATION.read_text() if CPU_INFORMATION.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return frozenset(match[1].split() if match else ())


def _fetch(
    source: SourceBuild, folder: Path, work: Path, tree: Path, environ: Mapping[str, str], log: Path, progress: Progress
) -> None:
    """The archive's files in `tree`."""
    progress(f"fetching the source of {source.sdist}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    archives = work / "archives"
    # Its metadata is made by the environment's own build backend: no second environment for that.
    pip = [str(folder / "bin" / "python"), "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    _run([*pip, "--no-binary", ":all:", "--dest", str(archives), source.sdist], environ, log, progress)
    (archive,) = archives.iterdir()
    shutil.unpack_archive(archive, archives / "unpacked")  # trusted, as pip trusts what it installs
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
    """Configure, build at low priority, and move the executables to their place."""
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
    """Run a tool. The user sees some of ninja's lines ("[12/210] …")."""
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

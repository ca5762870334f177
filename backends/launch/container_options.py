"""Builds the command line of an engine in a container: host network, mounted models, and a cache for compiled code."""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.base import Launch
from backends.launch.gpus import find_gpu

WRAPPER = Path(__file__).resolve().with_name("container.py")
SOURCES = Path(__file__).resolve().parents[1]  # source of the in-process server, which is mounted into the container
# Variables of this machine that mean nothing inside an image; the runtime pins the GPUs.
NOT_PASSED = ("PATH", "VIRTUAL_ENV", "CUDA_HOME", "TORCH_EXTENSIONS_DIR", "CUDA_VISIBLE_DEVICES", "HF_TOKEN")


def wrap(command: list[str], launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """Return the command that runs an engine in `launch.image`. It contains only names from `environ`."""
    assert launch.runtime is not None
    assert launch.image is not None
    name = "sweep-" + hashlib.sha256(f"{launch.workdir}:{launch.port}".encode()).hexdigest()[:12]
    passed = [variable for variable in environ if variable not in NOT_PASSED]
    options = _apptainer(launch) if launch.runtime == "apptainer" else _docker(launch, passed)
    return [sys.executable, "-I", "-S", str(WRAPPER), launch.runtime, name, *options, launch.image, *command]


def _docker(launch: Launch, passed: Iterable[str]) -> list[str]:
    options = ["--network=host", f"--shm-size={launch.shm_size}"]
    if launch.cpus:
        options.append(f"--cpuset-cpus={','.join(map(str, launch.cpus))}")
    if launch.gpus and launch.runtime == "docker":
        options.append(f'--gpus="device={",".join(launch.gpus)}"')  # docker parses the option's value as CSV
    elif launch.gpus:
        options += [f"--device=nvidia.com/gpu={_cdi(gpu)}" for gpu in launch.gpus]
    options += [f"--volume={source}:{target}:{mode}" for source, target, mode in _mounts(launch)]
    # Another name than supervisor.OWNER, which is passed on too, and would win.
    owner = [f"--env=SWEEP_CACHE_OWNER={os.getuid()}:{os.getgid()}"] if launch.image_cache else []
    return [*options, *_cache_variables(launch), *owner, *(f"--env={variable}" for variable in passed)]


def _apptainer(launch: Launch) -> list[str]:
    """Apptainer shares the host's network, environment and cores by default, so CUDA_VISIBLE_DEVICES pins the GPUs."""
    binds = [f"--bind={source}:{target}:{mode}" for source, target, mode in _mounts(launch)]
    return [*(["--nv"] if launch.gpus else []), "--no-home", "--writable-tmpfs", *binds, *_cache_variables(launch)]


def _cache_variables(launch: Launch) -> list[str]:
    """Return variables that point engines to the mounted cache for any container user; FlashInfer has its own."""
    names = ("XDG_CACHE_HOME", "FLASHINFER_WORKSPACE_BASE") if launch.image_cache else ()
    return [f"--env={name}={launch.image_cache}" for name in names]


def _cdi(gpu: str) -> str:
    """Return the GPU's name in NVIDIA's container device interface: its NVML number, or the UUID of a MIG part."""
    found_gpu = None if gpu.startswith("MIG-") else find_gpu(gpu)
    return str(found_gpu.number) if found_gpu else gpu


def _mounts(launch: Launch) -> list[tuple[str, str, str]]:
    models = [*folders(launch.model), *(folders(launch.draft) if launch.draft else [])]
    sources = [*models, launch.workdir.absolute(), SOURCES]
    mounts = [(str(source), str(source), "ro") for source in dict.fromkeys(sources)]
    if launch.image_cache and launch.cache:
        launch.cache.mkdir(parents=True, exist_ok=True)
        mounts.append((str(launch.cache.absolute()), launch.image_cache, "rw"))
    return mounts


def folders(model: Path) -> list[Path]:
    """Return the folders to mount for a model: its folder, and the targets of its links (as in the hub cache)."""
    linked = {path.resolve().parent for path in model.iterdir() if path.is_symlink()} if model.is_dir() else set()
    return [model.absolute(), *sorted(linked - {model.resolve()})]

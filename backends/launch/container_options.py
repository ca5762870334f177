"""The command line of an engine in a container: the host's network, mounted models, a cache for what it compiles."""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.base import Launch
from backends.launch.gpus import find_gpu

WRAPPER = Path(__file__).resolve().with_name("container.py")
SOURCES = Path(__file__).resolve().parents[1]  # of the host, which runs in the engine's process
# Of this machine's own environment, which means nothing in an image; GPUs are pinned by the runtime.
NOT_PASSED = ("PATH", "VIRTUAL_ENV", "CUDA_HOME", "TORCH_EXTENSIONS_DIR", "CUDA_VISIBLE_DEVICES", "HF_TOKEN")


def wrap(command: list[str], launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """Return the command that runs an engine in `launch.image`; only names of `environ` are on the command line."""
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
        options.append(f'--gpus="device={",".join(launch.gpus)}"')  # docker reads a line of CSV
    elif launch.gpus:
        options += [f"--device=nvidia.com/gpu={_cdi(gpu)}" for gpu in launch.gpus]
    options += [f"--volume={source}:{target}:{mode}" for source, target, mode in _mounts(launch)]
    owner = [f"--env=SWEEP_OWNER={os.getuid()}:{os.getgid()}"] if launch.image_cache else []
    return [*options, *_cache_variables(launch), *owner, *(f"--env={variable}" for variable in passed)]


def _apptainer(launch: Launch) -> list[str]:
    """Apptainer uses the host's network, environment and cores by default; CUDA_VISIBLE_DEVICES pins GPUs there too."""
    binds = [f"--bind={source}:{target}:{mode}" for source, target, mode in _mounts(launch)]
    return [*(["--nv"] if launch.gpus else []), "--no-home", "--writable-tmpfs", *binds, *_cache_variables(launch)]


def _cache_variables(launch: Launch) -> list[str]:
    """Variables that point engines to the mounted cache, whoever the container's user is; FlashInfer has its own."""
    names = ("XDG_CACHE_HOME", "FLASHINFER_WORKSPACE_BASE") if launch.image_cache else ()
    return [f"--env={name}={launch.image_cache}" for name in names]


def _cdi(gpu: str) -> str:
    """The GPU's name in NVIDIA's device interface, which numbers GPUs as NVML does; a part of a GPU has its UUID."""
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
    """The folders to mount for a model folder: itself, and the targets of its links (as in the hub's cache)."""
    linked = {path.resolve().parent for path in model.iterdir() if path.is_symlink()} if model.is_dir() else set()
    return [model.absolute(), *sorted(linked - {model.resolve()})]


def hub_token() -> dict[str, str]:
    """The variable with the user's hub token, which the wrapper passes on as a file; empty without a token."""
    return {"HF_TOKEN": os.environ["HF_TOKEN"]} if "HF_TOKEN" in os.environ else {}

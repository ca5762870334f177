"""The environment variables that an engine inherits from this process, and the variables that sweep sets for it."""

import fnmatch
from collections.abc import Iterable, Mapping

from backends.base import Backend, Launch
from backends.launch import supervisor, task
from sweep.base.masking import is_secret

# Set for every engine. Models are local folders, so no engine needs the hub; telemetry is off. Process titles must not
# overwrite the memory behind /proc/PID/environ, since stray processes are identified by their environment.
ENGINE_ENVIRON = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "SPT_NOENV": "1"}
# Variables that every engine inherits. Its backend may add more (`inherits`), and so may the user (`env.inherit`).
INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TMPDIR", "XDG_*"),
    *("LANG", "LANGUAGE", "LC_*", "TZ", "TERM"),
    *("CUDA_*", "NVIDIA_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "NCCL_*", "GLOO_*", "UCX_*", "HIP_*", "HSA_*", "ROCM_*"),
    *("OMP_*", "KMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*", "NUMBA_*", "MALLOC_*", "GLIBC_TUNABLES"),
    *("CC", "CXX", "CPATH", "LIBRARY_PATH"),  # set by a cluster's modules for the compiler that Triton and torch call
    *("TORCH*", "PYTORCH_*", "TRITON_*", "TOKENIZERS_*", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    "SWEEP_SHARED_MACHINE",
)
# Variables about the place where an engine runs, which do not affect its computation.
OF_THE_PLACE = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TMPDIR", "XDG_*", "TERM", "VIRTUAL_ENV"),
    *("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "SWEEP_*"),
)
INHERITED_BY_RUNTIMES = ("DOCKER_*", "CONTAINER_*", "CONTAINERS_*", "PODMAN_*", "APPTAINER*", "SINGULARITY*", "DBUS_*")


def inherited_environment(names: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables in INHERITED or `names` (PREFIX_* is allowed). A secret needs its full name in `names`."""
    patterns, full = (*INHERITED, *names), set(names)
    return {
        name: value
        for name, value in task.clean_environment().items()
        if name in full or (any(fnmatch.fnmatchcase(name, each) for each in patterns) and not is_secret(name, value))
    }


def engine_environment(backend: Backend, launch: Launch, marker: str) -> dict[str, str]:
    """Return an engine's environment: inherited variables, and variables set by its backend and by sweep."""
    return {
        **inherited_environment(
            (*backend.traits.inherits, *backend.env.inherit, *(INHERITED_BY_RUNTIMES if launch.image else ()))
        ),
        "PYTHONUNBUFFERED": "1",
        **ENGINE_ENVIRON,
        **task.activated(launch.python),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order, since GPUs are assigned by NVML number
        "CUDA_VISIBLE_DEVICES": ",".join(launch.gpus),
        **launch.environ,
        **backend.environment(launch),
        supervisor.MARKER: marker,
        **supervisor.owner_marks(),
    }


def telling_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may change how an engine computes, without secrets and without OF_THE_PLACE."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name not in supervisor.MARKS and not any(fnmatch.fnmatchcase(name, each) for each in OF_THE_PLACE)
        if not is_secret(name, value)
    }

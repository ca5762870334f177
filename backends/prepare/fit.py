"""Checks whether an environment's builds run on a node: its driver (CUDA major), GPUs, glibc and programs."""

from collections.abc import Iterable, Sequence

from backends.base import EnvironmentSpec, Host, Runtime

RUNTIMES: tuple[Runtime, ...] = ("docker", "podman", "apptainer")
LEAST_DRIVER = {12: "525", 13: "580"}  # oldest driver per CUDA major: NVIDIA's table of minor version compatibility
LEAST_CAPABILITY = {12: "5.0", 13: "7.5"}  # oldest GPUs for which a CUDA major version's libraries have kernels


def older(version: str | None, least: str | None) -> bool:
    """Return whether a version is older than the least version; False if either is unknown."""
    return version is not None and least is not None and numbers(version) < numbers(least)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def oldest(versions: Iterable[str | None]) -> str | None:
    return min(filter(None, versions), key=numbers, default=None)


def problem(spec: EnvironmentSpec, host: Host) -> str | None:
    """Return briefly why an environment's content cannot run on a node; None if it can."""
    runtimes = {spec.runtime} if spec.runtime else set(RUNTIMES)
    if spec.image and not runtimes & host.executables:
        return f"no {' or '.join(sorted(runtimes))} on PATH; install it with NVIDIA's container toolkit"
    if not spec.requirements and not spec.image:  # the user's own program
        return None
    if not spec.image and older(host.glibc, spec.glibc):
        return f"its wheels need glibc {spec.glibc} or newer, but the node has {host.glibc}"
    for program, remedy in spec.needs.items():
        if program not in host.executables:
            return f"needs {program}{'' if program.endswith('.h') else ' on PATH'}: {remedy}"
    if not host.gpus:
        return None
    compiled = "nvcc" in spec.needs
    cuda = spec.cuda or (int(numbers(host.nvcc)[0]) if compiled and host.nvcc else None)
    driver = spec.driver or (LEAST_DRIVER[cuda] if cuda else None)
    if older(host.driver, driver):
        return f"built for CUDA {cuda}, which needs NVIDIA driver {driver} or newer, but the node has {host.driver}"
    capability = spec.capability or (LEAST_CAPABILITY[cuda] if cuda else None)
    if older(host.capability, capability):
        return f"its kernels need GPUs of compute capability {capability} or newer, but the node has {host.capability}"
    if compiled and spec.cuda and host.nvcc and numbers(host.nvcc)[0] != spec.cuda:
        return f"its kernels are compiled by nvcc {spec.cuda}, but the node has {host.nvcc}"
    return None


def choose(specs: Sequence[EnvironmentSpec], host: Host | None) -> EnvironmentSpec:
    """Return the first environment that runs on a node, noting what it replaces. If none runs, return the first."""
    if host is None:
        return specs[0]
    problems = [problem(spec, host) for spec in specs]
    index = problems.index(None) if None in problems else 0
    if index == 0:
        return specs[0]
    return specs[index].model_copy(update={"substitutes": f"instead of environment {specs[0].name}: {problems[0]}"})


def for_driver(spec: EnvironmentSpec, host: Host | None) -> EnvironmentSpec:
    """Adapt an environment to a node's driver: its variables, and its CUDA major if it accepts torch for any CUDA."""
    if host and spec.cuda and spec.environ_older_driver and older(host.driver, LEAST_DRIVER[spec.cuda]):
        return spec.model_copy(update={"environ": spec.environ | spec.environ_older_driver})
    if spec.torch != "cuda" or spec.cuda or host is None or host.driver is None:
        return spec
    return spec.model_copy(update={"cuda": 12 if older(host.driver, LEAST_DRIVER[13]) else 13})


def refusal(spec: EnvironmentSpec, host: Host, forms: Iterable[EnvironmentSpec]) -> str | None:
    """Return an environment's problem on a node and the engine's `forms` that run there; None if it has none."""
    reason = problem(spec, host)
    if reason is None:
        return None
    if not any(word in reason for word in ("driver", "capability", "glibc")):
        return f"environment {spec.name}: {reason}"
    usable = " or ".join(f"backend.env.cuda={form.name}" for form in forms if not problem(for_driver(form, host), host))
    newer = "update the driver" if "driver" in reason else ""
    remedy = ", or set ".join(filter(None, [newer, usable])).removeprefix(", or ")
    return f"environment {spec.name}: {reason}" + (f"; {remedy}" if remedy else "")

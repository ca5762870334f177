"""Check on a machine with a GPU what no machine without one can: `scripts/gpu-check [SECTION...]`.

Each section ends within ten minutes and leaves its result in a folder, so ten minutes on a machine at a time will do:
the same command goes on with the sections that are not `ok` yet, first those that have not been tried. An engine that
is compiled takes longer to install: its section ends as `timeout`, and goes on where it was. The report (report.md
there) is made anew after each section. Without a GPU the same sections run on the CPU's engines, which rehearses
everything but the kernels.

    scripts/gpu-check --list                        the sections and their commands
    scripts/gpu-check                               all that are not ok yet
    scripts/gpu-check conformance:vllm memory:vllm  these, anew
    scripts/gpu-check --wheels DIR --fetch vllm     put the wheels of an engine's environment into a folder
    scripts/gpu-check --wheels DIR --fetch vllm --on driver=580,capability=8.9     the same for another machine
    scripts/gpu-check --wheels DIR                  without network: install from that folder alone
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from analysis.table import text_table
from backends import installed, llamacpp
from backends.base import EnvironmentChoice, EnvironmentSpec, Host, Platform
from backends.launch import gpus, host_facts
from backends.prepare import environments, fit, locks
from sweep.base import code_version
from sweep.base.config import ROOT, ConfigError, cache_directory
from sweep.base.options import load_option

LIMIT = 570.0  # s of a section's command: it has time to end within ten minutes
GRACE = 25.0  # s to end in, once it is told to
PYTHON = sys.executable
PYTORCH = "https://download.pytorch.org/whl"
REFERENCE = "transformers"  # the backend in whose environment the reference answers are made
TRIAL = ("cluster=inline", "tracking=none", "replicates=1", "workload.warmup_requests=1")
# The first study's main experiment, cut to fit: two batch sizes of one workload.
BOUND = ("workload=qa", "load.batch_size=1,16", "workload.num_requests=32", "workload.output_tokens=128", "gate=null")
REHEARSED = "smollm2"  # its model without a GPU
REHEARSAL = ("load.batch_size=1,4", "workload.num_requests=4", "workload.output_tokens=8")  # without a GPU


def no_obstacle() -> None:
    """The section can be made."""


@dataclass(frozen=True)
class Section:
    """One check: the command that makes it, and the folder of the run whose rows it reports, if it is a sweep."""

    name: str
    command: tuple[str, ...]
    out: str | None = None
    obstacle: Callable[[], str | None] = no_obstacle  # why it cannot be made now: asked when its turn comes


@dataclass(frozen=True)
class Result:
    """What became of a section."""

    name: str
    outcome: str  # ok | failed | timeout | skipped
    seconds: float
    detail: str
    time: str  # when it ended, as ISO 8601 in UTC
    commit: str | None


def engines() -> dict[str, str]:
    """What the environment of each backend holds, of those that are launched here in one of their own."""
    host, cache, contents = host_facts.host(), cache_directory(None), {}
    for engine in installed.names():
        backend = installed.configured(engine)
        if backend.launches and backend.traits.computes_model and (host.gpus or backend.env.cpu):
            contents[engine], _ = installed.planned(backend, host, cache)
    return {engine: content for engine, content in contents.items() if content.startswith("environment ")}


def sections(folder: Path) -> list[Section]:
    """All sections for this machine, in order."""
    on_gpu = bool(host_facts.gpu_names())
    engine_names = list(engines())
    pytest = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider")  # -q is in its settings: twice it says no counts
    conformance = (*pytest, "tests/engines/test_conformance.py", "-k")
    listed = [
        Section(f"install:{engine}", (PYTHON, "-m", "sweep", "backends", "install", engine)) for engine in engine_names
    ]
    for engine in engine_names:
        selection = f"{_only(engine, engine_names)} and not forgets_prompts"
        listed.append(Section(f"conformance:{engine}", (*conformance, selection), obstacle=partial(_obstacle, engine)))
    listed += _memory(engine_names, pytest, on_gpu)
    for engine in filter(_resets, engine_names):
        asked = f"{_only(engine, engine_names)} and forgets_prompts"
        listed.append(Section(f"reset:{engine}", (*conformance, asked), obstacle=partial(_obstacle, engine)))
    listed.append(_power(folder, on_gpu))
    listed.append(_two_gpus(folder))
    model = "random-llama-2-7b" if on_gpu else REHEARSED
    for engine in ("transformers", "vllm"):
        cut = BOUND if on_gpu else (*BOUND, *REHEARSAL)
        out = str(folder / f"bound-{engine}")
        command = ("+experiment=throughput_bound", f"backend={engine}", f"model={model}", *cut, *TRIAL, f"out={out}")
        listed.append(Section(f"bound:{engine}", (PYTHON, "-m", "sweep", *_last(command)), out))
    return listed


def _obstacle(name: str) -> str | None:
    """Why the engine of a backend cannot be launched now on this machine."""
    spec = _environment(installed.configured(name).env)
    if problem := fit.problem(spec, host_facts.host()):
        return problem
    ready = environments.built(spec, cache_directory(None))
    return None if ready else f"environment {spec.name} is not installed yet: install:{name} comes first"


def _memory(names: Sequence[str], pytest: Sequence[str], on_gpu: bool) -> Iterator[Section]:
    """Out of memory on purpose: on GPUs one engine a section."""
    if not on_gpu:
        yield Section("memory", (*pytest, "tests/engines/test_memory.py"))
        return
    for engine in names:
        command = (*pytest, "tests/engines/test_gpu_memory.py", "-k", _only(engine, names))
        yield Section(f"memory:{engine}", command, obstacle=partial(_obstacle, engine))


def _resets(name: str) -> bool:
    """Return whether a backend's prompt cache can be reset, and counts its hits, by which a reset shows."""
    backend = installed.configured(name)
    return bool(backend.resets) and "prefix_cache_hits_total" in backend.metric_names


def _environment(choice: EnvironmentChoice, host: Host | None = None) -> EnvironmentSpec:
    """The environment that a machine takes, by default this one, with its lock if there is one."""
    host = host or host_facts.host()
    on: Platform = "cuda" if (host.gpus and choice.cuda) or not choice.cpu else "cpu"
    spec = environments.resolve(choice, on, host=host)
    return locks.with_lock(spec, *locks.committed(), locks.remembered(cache_directory(None)))


def _only(name: str, names: Sequence[str]) -> str:
    """pytest's -k for one backend: names that contain it are other ones."""
    longer = [longer_name for longer_name in names if name in longer_name and longer_name != name]
    return " and ".join([name, *(f"not {longer_name}" for longer_name in longer)])


def _last(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command line, of each key the last."""
    return tuple({word.partition("=")[0]: word for word in words}.values())


def _power(folder: Path, on_gpu: bool) -> Section:
    """Power and energy over a trial, as telemetry has them."""
    out = str(folder / "power")
    model = "random-llama-2-7b" if on_gpu else "tiny-llama"
    load = ("load=closed", "load.concurrency=4", "workload=qa", "workload.num_requests=16", "workload.output_tokens=64")
    words = ("backend=transformers", f"model={model}", *load, *TRIAL, "agreement=false", f"out={out}")
    return Section("power", (PYTHON, "-m", "sweep", *words), out)


def _two_gpus(folder: Path) -> Section:
    """One deployment over two GPUs, or over a part of one (MIG) where CUDA_VISIBLE_DEVICES names it."""
    out = str(folder / "two_gpus")
    visible = gpus.visible()
    parts = any(gpu.uuid.startswith("MIG-") for gpu in visible)
    count = 1 if parts else 2
    obstacle = no_obstacle if parts or len(visible) > 1 else lambda: f"{len(visible)} GPUs here, no part of one (MIG)"
    words = ("backend=vllm", f"backend.gpus={count}", "model=tiny-llama", "workload=qa", "workload.num_requests=8")
    command = (PYTHON, "-m", "sweep", *words, "load.batch_size=4", *TRIAL, f"out={out}")
    return Section("two_gpus", command, out, obstacle)


def environ(wheels: Path | None) -> dict[str, str]:
    """The environment of every section: on the GPU if there is one, and without network given a folder of wheels."""
    settings = {"PYTHONPATH": str(ROOT), "SWEEP_TEST_ON": "cuda" if host_facts.gpu_names() else "cpu"}
    if wheels is not None:
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HF_HUB_OFFLINE": "1", "UV_OFFLINE": "1"}
        settings |= {**offline, "PIP_CONFIG_FILE": os.devnull}
    return {**os.environ, **settings}


def run(
    section: Section, folder: Path, wheels: Path | None, before: Result | None = None, limit: float | None = None
) -> Result:
    """Run a section's command, its output in the folder. A sweep that had a result `before` starts afresh.

    One that was cut off goes on instead.
    """
    if reason := section.obstacle():
        return _result(section, "skipped", 0.0, reason)
    begin = time.monotonic()
    log = folder / f"{section.name.replace(':', '-')}.log"
    afresh = ("fresh=true",) if section.out and before and before.outcome != "timeout" else ()
    with log.open("w") as file:
        command = (*section.command, *afresh)
        process = subprocess.Popen(command, cwd=ROOT, env=environ(wheels), stdout=file, stderr=subprocess.STDOUT)
        try:
            outcome = "ok" if process.wait(limit or LIMIT) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "timeout"
        finally:  # also when this process is told to end
            _end(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    measured = "; ".join(rows(Path(section.out))) if section.out else ""
    return _result(section, outcome, time.monotonic() - begin, measured or (lines or ["no output"])[-1][:200])


def _result(section: Section, outcome: str, seconds: float, detail: str) -> Result:
    detail = detail.replace(str(Path.home()), "~")  # the report is for others too
    return Result(section.name, outcome, seconds, detail, code_version.now(), code_version.commit())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a section's process, which ends its engines and compilers."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:  # its supervisors end what it has started
        process.kill()
        process.wait()


def rows(out: Path) -> Iterator[str]:
    """What the trials of a run came to, one phrase each, with energy where telemetry has power."""
    if not (out / "trials.parquet").exists():
        return
    for trial in pq.read_table(out / "trials.parquet").to_pylist():
        load = f"{trial['load']} {trial.get('batch_size') or trial.get('concurrency') or ''}".strip()
        phrase = f"{trial['backend']} {trial['engine_version']} {load}: {trial['outcome']}"
        if trial["outcome"] == "ok":
            phrase += f", {trial['output_throughput']:.0f} tokens/s"
        elif trial.get("reason"):
            phrase += f", {trial['reason'][:120]}"
        yield phrase + energy(out, trial)


def energy(out: Path, trial: Mapping[str, Any]) -> str:
    """Mean power and energy per output token of a trial, from its telemetry; empty without power."""
    files = list((out / "deployments").glob(f"*/{trial['attempt']}/{trial['trial_id']}/telemetry.parquet"))
    samples = pq.read_table(files[0]).to_pylist() if files else []
    watts = [sample["value"] for sample in samples if sample["series"] == "gpu_power_watts"]
    if not watts or not trial.get("output_tokens"):
        return ""
    mean = sum(watts) / len(watts)
    return f", {mean:.0f} W, {mean * trial['duration'] / trial['output_tokens']:.2f} J/token"


def report(folder: Path, listed: Sequence[Section]) -> str:
    """The report of all results so far: the machine, the versions, and a line for each section."""
    host, machine, results = host_facts.host(), host_facts.hardware(), load_results(folder)
    made = [results[section.name] for section in listed if section.name in results]
    commits = ", ".join(dict.fromkeys(result.commit or "unknown" for result in made))
    times = sorted(result.time[:16].replace("T", " ") for result in made)
    facts = {name: getattr(host, name) for name in ("driver", "capability", "nvcc", "glibc", "python")}
    lines = ["# What runs on this machine", ""]
    lines += [f"Made by `scripts/gpu-check` at commit {commits}, from {times[0]} to {times[-1]} (UTC).", ""]
    lines += [f"- GPUs: {', '.join(host.gpus) or 'none, a rehearsal on the CPU'}"]
    lines += [f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of memory"]
    lines += [f"- {', '.join(f'{name} {value}' for name, value in facts.items() if value)}"]
    lines += [f"- {name}: {contents}" for name, contents in engines().items()]
    rows = []
    for section in listed:
        result = results.get(section.name)
        cells = (result.outcome, f"{result.seconds:.0f} s", result.detail) if result else ("-", "", "")
        rows.append([section.name, *cells])
    return "\n".join([*lines, "", *text_table(["section", "outcome", "time", "detail"], rows).markdown(), ""])


def load_results(folder: Path) -> dict[str, Result]:
    results = [Result(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    return {result.name: result for result in results}


def pending(listed: Sequence[Section], named: Sequence[str], results: Mapping[str, Result]) -> list[Section]:
    """The sections that are to be run now: those that are named, else all that are not ok, first those without result.

    So one that fails or takes too long every time does not keep the others from their turns.
    """
    if named:
        return [section for section in listed if section.name in named]
    without_ok = [section for section in listed if section.name not in results or results[section.name].outcome != "ok"]
    return sorted(without_ok, key=lambda section: section.name in results)


def fetch(names: Sequence[str], wheels: Path, host: Host) -> int:
    """Put everything that these engines need into a folder: what their environments install, as their locks have it.

    With the locks, the environment of the reference that judges their answers, that of llama.cpp's converter, and the
    model of a rehearsal. Return the exit status.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    choices = [installed.configured(engine).env for engine in dict.fromkeys([*names, REFERENCE])]
    choices += [llamacpp.CONVERTER] if "llamacpp" in names else []
    try:
        for choice in choices:
            _fetch(_environment(choice, host), wheels)
        if not host.gpus:
            _download([load_option("model", REHEARSED)["package"]], wheels)
    except environments.EnvironmentFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _fetch(spec: EnvironmentSpec, wheels: Path) -> None:
    """Download what an environment's lock names, and put the lock beside it. Raises EnvironmentFailed."""
    if spec.image:
        raise environments.EnvironmentFailed(f"environment {spec.name} is an image, not wheels")
    spec = locks.locked(spec, cache_directory(None), print)
    assert spec.lock is not None, "it is locked now"
    (wheels / "locks").mkdir(exist_ok=True)
    (wheels / "locks" / locks.file_name(spec)).write_text(locks.text(spec))
    pins = wheels / f"{spec.name}.txt"
    pins.write_text("\n".join(spec.lock.pins) + "\n")
    everything = ["-r", str(pins), *(option for url in spec.index for option in ("--extra-index-url", url))]
    if spec.python_version:
        everything += ["--python-version", spec.python_version, "--only-binary", ":all:"]
    build = next((pin.partition("+")[2] for pin in spec.lock.pins if pin.startswith("torch==")), "")
    try:
        _download(everything, wheels)
    except environments.EnvironmentFailed:
        if not build:
            raise
        # The user's own indexes have no such build of torch: PyTorch's has.
        _download([*everything, "--extra-index-url", f"{PYTORCH}/{build}"], wheels)
    if spec.source:
        distribution = spec.source.sdist.partition("==")[0]
        _download(["--no-binary", distribution, spec.source.sdist], wheels)  # but what it is built with comes as wheels


def _download(requirements: Sequence[str], wheels: Path) -> None:
    command = [PYTHON, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), *requirements]
    if subprocess.run(command, check=False).returncode != 0:
        raise environments.EnvironmentFailed(f"{' '.join(requirements)}: not all of it can be downloaded")


def remember(wheels: Path) -> None:
    """Take the locks of a folder of wheels for those that this machine has resolved."""
    folder = locks.remembered(cache_directory(None))
    folder.mkdir(parents=True, exist_ok=True)
    for file in (wheels / "locks").glob("*.txt"):
        shutil.copyfile(file, folder / file.name)


def main(arguments: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/gpu-check", description=__doc__, formatter_class=layout)
    parser.add_argument("sections", metavar="SECTION", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("results/gpu-check"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels: nothing else is used")
    parser.add_argument("--fetch", action="store_true", help="fill that folder for the engines named")
    parser.add_argument("--on", metavar="FACTS", help="fetch for a machine with GPUs like this, not for the one here")
    parser.add_argument("--list", action="store_true", help="print the sections and their commands")
    options = parser.parse_args(arguments)
    if options.fetch:
        if options.wheels is None:
            parser.error("--fetch: needs --wheels DIR")
        try:
            host = installed.host_like(options.on) if options.on else host_facts.host()
        except ConfigError as error:
            parser.error(str(error))
        return fetch(options.sections, options.wheels.absolute(), host)
    folder = options.folder.absolute()
    listed = sections(folder)
    unknown = set(options.sections) - {section.name for section in listed}
    if unknown:
        parser.error(f"no section {min(unknown)}; expected: {', '.join(section.name for section in listed)}")
    if options.list:
        for section in listed:
            obstacle = section.obstacle()
            print(f"{section.name}: {' '.join(section.command[1:])}{f' (now: {obstacle})' if obstacle else ''}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wheels = options.wheels.absolute() if options.wheels else None
    if wheels:
        remember(wheels)
    for section in pending(listed, options.sections, load_results(folder)):
        result = run(section, folder, wheels, load_results(folder).get(section.name))
        (folder / f"{section.name.replace(':', '-')}.json").write_text(json.dumps(asdict(result)))
        print(f"{section.name}: {result.outcome} after {result.seconds:.0f} s: {result.detail}", flush=True)
        (folder / "report.md").write_text(report(folder, listed))
    results = load_results(folder)
    return int(any(result.outcome not in ("ok", "skipped") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())

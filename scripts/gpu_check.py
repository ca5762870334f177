"""Check everything that needs a GPU: `scripts/gpu-check [SECTION...]`.

Each section ends within ten minutes and leaves its result in a folder, so ten minutes at a time are enough. The same
command continues with sections that are not `ok`, untried ones first. If an engine must be compiled, its section may
end as `timeout`, and the next command continues the compilation. The report (report.md in that folder) is rewritten
after each section. Without a GPU the same sections run on the CPU's engines, which rehearses everything but the
kernels.

    scripts/gpu-check --list                        the sections and their commands
    scripts/gpu-check                               all sections that are not ok
    scripts/gpu-check conformance:vllm memory:vllm  these sections, again
    scripts/gpu-check --wheels DIR --fetch vllm     put the wheels of an engine's environment into a folder
    scripts/gpu-check --wheels DIR --fetch vllm --on driver=580,capability=8.9     the same for another machine
    scripts/gpu-check --wheels DIR --pack PARTS     split that folder into files of at most 63 MiB
    scripts/gpu-check --wheels DIR --unpack PARTS   put it together again, once all of them have arrived
    scripts/gpu-check --wheels DIR                  without network: install from that folder alone
    scripts/gpu-check --python python3              transformers and the reference run in this interpreter
    scripts/gpu-check --out DIR --within 590        two files there: report.md, and an archive of all results
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
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

LIMIT = 570.0  # maximum seconds of a section's command, so that the section can end within ten minutes
GRACE = 25.0  # seconds within which a command must end once it is told to
PYTHON = sys.executable
PYTORCH = "https://download.pytorch.org/whl"
REFERENCE = "transformers"  # backend whose environment computes the reference answers
# The environments of transformers, in which the reference is computed too.
WITH_PYTHON = {"cuda": ("transformers", "transformers_cuda12"), "cpu": ("cpu",)}
PART = 63 * 2**20  # maximum bytes of a part of packed wheels
PART_NAME = re.compile(r"(\d+)-of-(\d+)-([0-9a-f]{16})\.part")
SHORTEST = 30.0  # minimum seconds that a section needs
TRIAL = ("cluster=inline", "tracking=none", "replicates=1", "workload.warmup_requests=1")
# The first study's main experiment, reduced to two batch sizes of one workload.
BOUND = ("workload=qa", "load.batch_size=1,16", "workload.num_requests=32", "workload.output_tokens=128", "gate=null")
REHEARSED = "smollm2"  # the experiment's model without a GPU
REHEARSAL = ("load.batch_size=1,4", "workload.num_requests=4", "workload.output_tokens=8")  # without a GPU


def no_obstacle() -> None:
    """Return None: nothing prevents the section."""


@dataclass(frozen=True)
class Section:
    """One check: its command and, if it is a sweep, the folder of the run whose rows it reports."""

    name: str
    command: tuple[str, ...]
    out: str | None = None
    obstacle: Callable[[], str | None] = no_obstacle  # why it cannot run now; called when its turn comes


@dataclass(frozen=True)
class Result:
    """The result of a section."""

    name: str
    outcome: str  # ok | failed | timeout | skipped
    seconds: float
    detail: str
    time: str  # when it ended, as ISO 8601 in UTC
    commit: str | None


def engines() -> dict[str, str]:
    """Return what each backend's environment contains, for backends that are launched here in their own environment."""
    host, cache, contents = host_facts.host(), cache_directory(None), {}
    for engine in installed.names():
        backend = installed.configured(engine)
        if backend.launches and backend.traits.computes_model and (host.gpus or backend.env.cpu):
            contents[engine], _ = installed.planned(backend, host, cache)
    return {engine: content for engine, content in contents.items() if content.startswith("environment ")}


def sections(folder: Path) -> list[Section]:
    """Return all sections for this machine, in order."""
    on_gpu = bool(host_facts.gpu_names())
    engine_names = list(engines())
    pytest = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider")  # the settings have -q; a second -q hides the counts
    conformance = (*pytest, "tests/engines/test_conformance.py", "-k")
    listed = [
        Section(f"install:{engine}", (PYTHON, "-m", "sweep", "backends", "install", engine)) for engine in engine_names
    ]
    for engine in engine_names:
        selection = f"{_only(engine, engine_names)} and not forgets_prompts"
        listed.append(Section(f"conformance:{engine}", (*conformance, selection), obstacle=partial(_obstacle, engine)))
    listed += _memory(engine_names, pytest, on_gpu)
    for engine in filter(_resets, engine_names):
        cases = f"{_only(engine, engine_names)} and forgets_prompts"
        listed.append(Section(f"reset:{engine}", (*conformance, cases), obstacle=partial(_obstacle, engine)))
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
    """Return why a backend's engine cannot be launched on this machine now, or None if it can."""
    spec = _environment(installed.configured(name).env)
    if problem := fit.problem(spec, host_facts.host()):
        return problem
    ready = environments.built(spec, cache_directory(None))
    return None if ready else f"environment {spec.name} has not been installed yet; run install:{name} first"


def _memory(names: Sequence[str], pytest: Sequence[str], on_gpu: bool) -> Iterator[Section]:
    """Yield sections that run out of memory on purpose; on GPUs one per engine."""
    if not on_gpu:
        yield Section("memory", (*pytest, "tests/engines/test_memory.py"))
        return
    for engine in names:
        command = (*pytest, "tests/engines/test_gpu_memory.py", "-k", _only(engine, names))
        yield Section(f"memory:{engine}", command, obstacle=partial(_obstacle, engine))


def _resets(name: str) -> bool:
    """Return whether a backend's prompt cache can be reset and counts its hits, from which a reset is visible."""
    backend = installed.configured(name)
    return bool(backend.resets) and "prefix_cache_hits_total" in backend.metric_names


def _environment(choice: EnvironmentChoice, host: Host | None = None) -> EnvironmentSpec:
    """Return the environment for a machine (default: this one), with its lock if there is one."""
    host = host or host_facts.host()
    on: Platform = "cuda" if (host.gpus and choice.cuda) or not choice.cpu else "cpu"
    spec = environments.resolve(choice, on, host=host)
    return locks.with_lock(spec, *locks.committed(), locks.remembered(cache_directory(None)))


def _only(name: str, names: Sequence[str]) -> str:
    """Return pytest's -k argument for one backend, excluding backends whose names contain its name."""
    longer = [longer_name for longer_name in names if name in longer_name and longer_name != name]
    return " and ".join([name, *(f"not {longer_name}" for longer_name in longer)])


def _last(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments of a command line, with only the last argument for each key."""
    return tuple({argument.partition("=")[0]: argument for argument in arguments}.values())


def _power(folder: Path, on_gpu: bool) -> Section:
    """Return the section that reads power and energy over a trial from telemetry."""
    out = str(folder / "power")
    model = "random-llama-2-7b" if on_gpu else "tiny-llama"
    load = ("load=closed", "load.concurrency=4", "workload=qa", "workload.num_requests=16", "workload.output_tokens=64")
    arguments = ("backend=transformers", f"model={model}", *load, *TRIAL, "agreement=false", f"out={out}")
    return Section("power", (PYTHON, "-m", "sweep", *arguments), out)


def _two_gpus(folder: Path) -> Section:
    """Return the section with a deployment on two GPUs, or on a MIG part named by CUDA_VISIBLE_DEVICES."""
    out = str(folder / "two_gpus")
    visible = gpus.visible()
    parts = any(gpu.uuid.startswith("MIG-") for gpu in visible)
    count = 1 if parts else 2
    obstacle = no_obstacle if parts or len(visible) > 1 else lambda: f"{len(visible)} GPUs here, no part of one (MIG)"
    arguments = ("backend=vllm", f"backend.gpus={count}", "model=tiny-llama", "workload=qa", "workload.num_requests=8")
    command = (PYTHON, "-m", "sweep", *arguments, "load.batch_size=4", *TRIAL, f"out={out}")
    return Section("two_gpus", command, out, obstacle)


def environ(wheels: Path | None) -> dict[str, str]:
    """Return the environment of every section: on a GPU if there is one, and offline if there is a folder of wheels."""
    settings = {"PYTHONPATH": str(ROOT), "SWEEP_TEST_ON": "cuda" if host_facts.gpu_names() else "cpu"}
    if wheels is not None:
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HF_HUB_OFFLINE": "1", "UV_OFFLINE": "1"}
        settings |= {**offline, "PIP_CONFIG_FILE": os.devnull}
    return {**os.environ, **settings}


def run(
    section: Section, folder: Path, wheels: Path | None, before: Result | None = None, limit: float | None = None
) -> Result:
    """Run a section's command, with its output in the folder. A sweep with a result `before` starts from the beginning.

    A sweep that was cut off continues instead.
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
        finally:  # even if this process is told to end
            _end(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    measured = "; ".join(rows(Path(section.out))) if section.out else ""
    return _result(section, outcome, time.monotonic() - begin, measured or (lines or ["no output"])[-1][:200])


def _result(section: Section, outcome: str, seconds: float, detail: str) -> Result:
    detail = detail.replace(str(Path.home()), "~")
    return Result(section.name, outcome, seconds, detail, code_version.now(), code_version.commit())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a section's process, and thereby its engines and compilers."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:  # its supervisors end the processes that it started
        process.kill()
        process.wait()


def rows(out: Path) -> Iterator[str]:
    """Return the results of a run's trials, one phrase each, with energy if telemetry has power."""
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
    """Return a trial's mean power and energy per output token from its telemetry; empty if it has no power."""
    files = list((out / "deployments").glob(f"*/{trial['attempt']}/{trial['trial_id']}/telemetry.parquet"))
    samples = pq.read_table(files[0]).to_pylist() if files else []
    watts = [sample["value"] for sample in samples if sample["series"] == "gpu_power_watts"]
    if not watts or not trial.get("output_tokens"):
        return ""
    mean = sum(watts) / len(watts)
    return f", {mean:.0f} W, {mean * trial['duration'] / trial['output_tokens']:.2f} J/token"


def report(folder: Path, listed: Sequence[Section]) -> str:
    """Return the report of all results so far: the machine, the versions, and a line per section."""
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
    home = str(Path.home())  # the report is also for people without this machine
    lines += [f"- {name}: {contents.replace(home, '~')}" for name, contents in engines().items()]
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
    """Return the sections to run now: the named sections, or all that are not ok; sections without a result come first.

    So a section that always fails or takes too long does not block the others.
    """
    if named:
        return [section for section in listed if section.name in named]
    without_ok = [section for section in listed if section.name not in results or results[section.name].outcome != "ok"]
    return sorted(without_ok, key=lambda section: section.name in results)


def fetch(names: Sequence[str], wheels: Path, host: Host) -> int:
    """Put everything that these engines need into a folder: the distributions in their environments' locks.

    The folder also gets the locks, the environments of the reference and of llama.cpp's converter, and the model of a
    rehearsal. Return the exit status.
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
    """Download the distributions in an environment's lock, and put the lock next to them. Raises EnvironmentFailed."""
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
        # The user's own indexes lack this build of torch; PyTorch's index has it.
        _download([*everything, "--extra-index-url", f"{PYTORCH}/{build}"], wheels)
    if spec.source:
        distribution = spec.source.sdist.partition("==")[0]
        _download(["--no-binary", distribution, spec.source.sdist], wheels)  # their build tools come as wheels


def _download(requirements: Sequence[str], wheels: Path) -> None:
    command = [PYTHON, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), *requirements]
    if subprocess.run(command, check=False).returncode != 0:
        raise environments.EnvironmentFailed(f"{' '.join(requirements)}: not all of it can be downloaded")


def pack(wheels: Path, parts: Path) -> int:
    """Split a folder of wheels into numbered parts, whose names hold their digests. Return their number."""
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=parts) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(wheels, arcname=".")
        count = -(-file.tell() // PART)
        file.seek(0)
        for number in range(1, count + 1):
            content = file.read(PART)
            (parts / f"{number:03}-of-{count:03}-{_digest(content)}.part").write_bytes(content)
    return count


def unpack(wheels: Path, parts: Path) -> str | None:
    """Put packed wheels together. Return what is missing or damaged, or None."""
    names = {int(match[1]): match for path in parts.iterdir() if (match := PART_NAME.fullmatch(path.name))}
    count = int(next(iter(names.values()))[2]) if names else 1
    if missing := sorted({*range(1, count + 1)} - names.keys()):
        return f"{parts}: part {', '.join(map(str, missing))} of {count} is missing"
    with tempfile.TemporaryFile(dir=parts) as file:
        for _, match in sorted(names.items()):
            content = (parts / match[0]).read_bytes()
            if _digest(content) != match[3]:
                return f"{parts / match[0]}: damaged or incomplete; bring it again"
            file.write(content)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(wheels, filter="data")
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def use_python(python: str, folder: Path) -> str | None:
    """Make every process here use this interpreter for transformers' environments. Return why it cannot be used."""
    program = shutil.which(python)
    if program is None:
        return f"--python={python}: not an executable file"
    versions = environments.installed(program)
    if missing := [name for name in ("torch", "transformers", "accelerate") if name not in versions]:
        return f"--python={python}: has no {' and no '.join(missing)}"
    options = folder / "conf" / "environment"
    options.mkdir(parents=True, exist_ok=True)
    for name in WITH_PYTHON["cuda" if host_facts.gpu_names() else "cpu"]:
        (options / f"{name}.yaml").write_text(f"python: {json.dumps(program)}\n")
    os.environ["SWEEP_CONFIG_DIR"] = str(folder / "conf")
    return None


def bring_out(folder: Path, out: Path) -> None:
    """Put the report and one archive of all results into a folder, for a machine that returns only a few files."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "report.md", out / "report.md")
    with tarfile.open(out / "results.tar.gz.partial", "w:gz") as archive:
        archive.add(folder, arcname="gpu-check")
    (out / "results.tar.gz.partial").rename(out / "results.tar.gz")


def remember(wheels: Path) -> None:
    """Store the locks from a folder of wheels as if this machine had resolved them."""
    folder = locks.remembered(cache_directory(None))
    folder.mkdir(parents=True, exist_ok=True)
    for file in (wheels / "locks").glob("*.txt"):
        shutil.copyfile(file, folder / file.name)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/gpu-check", description=__doc__, formatter_class=layout)
    parser.add_argument("sections", metavar="SECTION", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("results/gpu-check"))
    parser.add_argument("--wheels", type=Path, help="use only this folder of wheels")
    parser.add_argument("--fetch", action="store_true", help="fill that folder for the named engines")
    parser.add_argument("--on", metavar="FACTS", help="fetch for a machine with GPUs like this, not for this machine")
    parser.add_argument("--list", action="store_true", help="print the sections and their commands")
    parser.add_argument("--pack", metavar="PARTS", type=Path, help="split the folder of wheels into files there")
    parser.add_argument("--unpack", metavar="PARTS", type=Path, help="fill the folder of wheels from them")
    parser.add_argument(
        "--python", help="an interpreter with torch, transformers and accelerate, in place of environments"
    )
    parser.add_argument("--out", type=Path, help="a folder for report.md and one archive of the results")
    parser.add_argument("--within", metavar="SECONDS", type=float, help="end by then; the next command goes on")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    if (options.fetch or options.pack or options.unpack) and options.wheels is None:
        parser.error("--fetch, --pack and --unpack: need --wheels DIR")
    if options.pack:
        print(f"{pack(options.wheels, options.pack)} parts in {options.pack}")
        return 0
    if options.unpack and (problem := unpack(options.wheels, options.unpack)):
        parser.error(problem)
    if options.fetch:
        try:
            host = installed.host_like(options.on) if options.on else host_facts.host()
        except ConfigError as error:
            parser.error(str(error))
        return fetch(options.sections, options.wheels.absolute(), host)
    folder = options.folder.absolute()
    if options.python and (problem := use_python(options.python, folder)):
        parser.error(problem)
    listed = sections(folder)
    unknown = set(options.sections) - {section.name for section in listed}
    if unknown:
        parser.error(f"no section {min(unknown)}; expected: {', '.join(section.name for section in listed)}")
    if options.list:
        for section in listed:
            obstacle = section.obstacle()
            print(f"{section.name}: {' '.join(section.command[1:])}{f' (now: {obstacle})' if obstacle else ''}")
        return 0
    return _run_pending(options, folder, listed, begin)


def _run_pending(options: argparse.Namespace, folder: Path, listed: Sequence[Section], begin: float) -> int:
    """Run the pending sections while there is time, and write the report. Return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wheels = options.wheels.absolute() if options.wheels else None
    if wheels:
        remember(wheels)
    for section in pending(listed, options.sections, load_results(folder)):
        remaining = (options.within or math.inf) - (time.monotonic() - begin) - GRACE
        if remaining < SHORTEST:
            break
        result = run(section, folder, wheels, load_results(folder).get(section.name), min(LIMIT, remaining))
        (folder / f"{section.name.replace(':', '-')}.json").write_text(json.dumps(asdict(result)))
        print(f"{section.name}: {result.outcome} after {result.seconds:.0f} s: {result.detail}", flush=True)
        (folder / "report.md").write_text(report(folder, listed))
        if options.out:
            bring_out(folder, options.out)
    if options.out:  # also if no section was left to run
        (folder / "report.md").write_text(report(folder, listed))
        bring_out(folder, options.out)
    results = load_results(folder)
    return int(any(result.outcome not in ("ok", "skipped") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())

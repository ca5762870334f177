"""Measures launches of a real llama.cpp, back to back: pairs of one configuration, and planted slow-downs.

    python -m benchmarks.paired_launches [--blocks 200] [--pause-while FILE]

A block holds two launches of one configuration, one after the other. Before and after them is one launch for each of
PLANTED, in random order. So every launch with a planted slow-down is next to a launch without one, as close as those
two are to each other. All launches of a block get the same prompts. A slowed engine is stopped for this share of the
time (duty_cycle.py). Beside the other engines the same process stops nothing. When its block is complete, every launch
becomes a row of docs/measurements/compare_launches.csv, made by `summarise` and no run's writer. The same command
continues there. (The first 100 blocks have slow-downs only in every second block, and anywhere in it.)
`benchmarks.compare` judges the launches.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import Backend, Launch
from backends.launch import server
from backends.prepare import environments as environments
from backends.prepare import locks
from sweep.base.code_version import now
from sweep.base.config import ROOT, build, cache_directory
from sweep.base.options import load_option
from sweep.base.whole_file import write_whole
from sweep.client.measurement import measure
from sweep.inputs.load import Closed
from sweep.inputs.workload import Synthetic
from sweep.node.trial import target
from sweep.numbers.summarise import summarise

ROWS = Path(__file__).parents[1] / "docs" / "measurements" / "compare_launches.csv"
REFERENCE, AGAIN = "reference", "again"  # the two arms of one configuration
PLANTED = {"10% slower": 0.1, "20% slower": 0.2}  # share of the time in which the engine is stopped
ENGINE_CORE, CLIENT_CORE = 1, 0
INPUT_TOKENS, OUTPUT_TOKENS = 16, 32
USERS, REQUESTS = 4, 24
WARM_UP = 2  # requests before the measured requests
CONTEXT = 128  # maximum tokens of a sequence
PAUSE_CHECK = 2.0  # seconds between two checks for the file that makes it pause


@dataclass(frozen=True)
class LaunchRow:
    """One launch with its trial. Its fields are the columns of the CSV."""

    block: int
    position: int  # position in its block
    arm: str
    started_at: str  # time in UTC
    stopped_share: float  # measured share of the time in which the engine was stopped
    startup_seconds: float  # seconds of the launch and the engine's end: everything but the trial
    wall_seconds: float  # seconds of the trial, including its warm-up
    output_throughput: float  # tokens/s
    ttft_p50: float  # s
    tpot_p50: float  # s; empty if a late client got several tokens at once
    load_average: float  # the machine's one-minute load average at the end of the launch


@dataclass(frozen=True)
class Study:
    """The settings that all launches have in common."""

    backend: Backend
    launch: Launch
    tokenizer: Any


def prepare_study(folder: Path, model_name: str) -> Study:
    """Return llama.cpp and its model on this machine; build them if they do not exist yet."""
    cache = cache_directory(None)
    backend: Any = build(load_option("backend", "llamacpp"), "backend")
    backend = backend.model_copy(update={"slots": USERS})
    model: Any = build(load_option("model", model_name), "model")
    environment = environments.prepare(
        locks.locked(environments.resolve(backend.env, "cpu"), cache, print), cache, print
    )
    launch = Launch(
        model=backend.weights(model.prepare(cache, print), environment.python, cache, print),
        served_name=model_name,
        workdir=folder,
        python=environment.python,
        binary=environment.binary,
        cpus=(ENGINE_CORE,),
        max_model_len=CONTEXT,
    )
    return Study(backend, launch, model.load_tokenizer(cache))


@contextmanager
def slowed(pid: int, share: float) -> Iterator[list[float]]:
    """Slow a process down. At the end, the yielded list gets the share of the time in which it was stopped."""
    command = [sys.executable, "-m", "benchmarks.duty_cycle", str(pid), str(share)]
    measured: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        os.sched_setaffinity(process.pid, {CLIENT_CORE})
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield measured
        finally:
            process.stdin.close()
            measured.append(json.loads(process.stdout.read()))


def measure_launch(study: Study, block: int, position: int, arm: str) -> LaunchRow:
    """Launch the engine, measure a trial, and end the engine."""
    began, started_at = time.monotonic(), now()
    workload = Synthetic(name="synthetic", input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    requests = workload.requests(study.tokenizer, REQUESTS, block)
    warm_up = workload.requests(study.tokenizer, WARM_UP, block + 1, phase="warmup")
    mode = Closed(concurrency=USERS).mode(REQUESTS, block)
    marker = f"paired-launches/{os.getpid()}"
    with server.running(study.backend, study.launch, marker=marker, versions={}) as engine:
        (process,) = engine.processes()
        with slowed(process.pid, PLANTED.get(arm, 0.0)) as shares, tempfile.TemporaryDirectory() as job:
            measuring = time.monotonic()
            result = measure(
                target(engine, ignore_eos=True), warm_up, requests, mode, folder=Path(job) / "job", cpus={CLIENT_CORE}
            )
            wall_seconds = time.monotonic() - measuring
    figures: dict[str, Any] = summarise(result.records)
    if figures["num_failed"]:
        raise SystemExit(f"block {block}, {arm}: {figures['num_failed']} requests failed; the engine's log is kept")
    columns = {name: figures[name] for name in ("output_throughput", "ttft_p50", "tpot_p50")}
    startup = time.monotonic() - began - wall_seconds
    return LaunchRow(
        block, position, arm, started_at, shares[0], startup, wall_seconds, **columns, load_average=os.getloadavg()[0]
    )


def block_order(block: int) -> list[str]:
    """Return a block's arms in random order: the pair of one configuration is between the slow-downs."""
    chance = random.Random(block)
    alike, planted = [REFERENCE, AGAIN], list(PLANTED)
    chance.shuffle(alike)
    chance.shuffle(planted)
    return [planted[0], *alike, planted[1]]


def read_rows(path: Path = ROWS, kind: Any = LaunchRow) -> list[Any]:
    """Return the launches, or rows of another dataclass, that have been measured so far."""
    if not path.exists():
        return []
    types: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(kind)}
    with path.open(newline="") as file:
        return [
            kind(**{name: types[name](text or ("nan" if types[name] is float else "")) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def write_rows(rows: Sequence[Any], path: Path) -> None:
    """Write rows of one dataclass, whole or not at all."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(each.name for each in dataclasses.fields(rows[0]))
    for row in rows:
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in dataclasses.astuple(row))
    write_whole(path, content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--pause-while", type=Path, metavar="FILE", help="no block begins while it exists")
    parser.add_argument("--output", type=Path, default=ROWS)
    options = parser.parse_args()
    rows = read_rows(options.output)
    with tempfile.TemporaryDirectory(prefix="sweep-paired-launches-") as folder:
        study = prepare_study(Path(folder), options.model)
        for block in range(max((row.block for row in rows), default=-1) + 1, options.blocks):
            while options.pause_while and options.pause_while.exists():
                time.sleep(PAUSE_CHECK)
            new = [measure_launch(study, block, *place) for place in enumerate(block_order(block))]
            rows += new
            write_rows(rows, options.output)
            speeds = ", ".join(f"{row.arm} {row.output_throughput:.0f}" for row in new)
            seconds = statistics.mean(row.startup_seconds + row.wall_seconds for row in new)
            print(f"block {block}: {speeds} tokens/s; {seconds:.1f} s a launch", flush=True)


if __name__ == "__main__":
    main()

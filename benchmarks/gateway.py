"""Measures the delay that the gateway adds, with a simulated engine that logs its true times.

    python -m benchmarks.gateway [--write docs/measurements/gateway.md] [--streams 1,16,64,256] [--repeats 3]

The measuring client sends to the engine directly, through a gateway that only forwards, and through a gateway whose
semantic cache holds 10,000 answers. Every request misses: a new prompt is embedded and compared with all answers. The
engine and the gateway share the engine's cores; the client has its own cores, as in a trial. TTFT and E2E are compared
request by request with the engine's log, matched by x-request-id. The gateway's delay is the excess over the direct
path. The first row spreads its arrivals evenly in an open loop. The rest are closed loops: all streams begin at once.
"""

import argparse
import atexit
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import uuid
from array import array
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray

from backends.simulated_server.truth import read_log
from benchmarks.documents import markdown_table, publish
from sweep.base.code_version import commit
from sweep.base.config import ROOT
from sweep.base.records import Request
from sweep.client.measurement import Measurement, measure
from sweep.client.modes import ClosedLoop, Mode, OpenLoop
from sweep.client.wire import Target
from sweep.inputs.workload import WORDS

TTFT, ITL, TOKENS = 0.05, 0.02, 64
CACHED = 10_000  # answers in the cache
WARM_UP = 128  # requests that open connections and make 99% of the words known, as after a minute
FORMS: dict[str, dict[str, Any] | None] = {"direct": None, "passes": {}, "cache of 10000": {"cache": {}}}
MARKS = ("<!-- overhead: begin -->", "<!-- overhead: end -->")


class Load(NamedTuple):
    """The number of streams, and how they begin."""

    streams: int
    spread: bool = False

    def mode(self, count: int) -> Mode:
        """Return a closed loop, or evenly spread arrivals with this many requests in flight on average."""
        if not self.spread:
            return ClosedLoop(self.streams)
        gap = (TTFT + TOKENS * ITL) / self.streams
        return OpenLoop(array("d", [gap * number for number in range(count)]))

    @property
    def name(self) -> str:
        return f"{self.streams}, spread arrivals" if self.spread else f"{self.streams}, at once"


class Figures(NamedTuple):
    """The errors of one run relative to the engine's log, in s, and the gateway's own lag."""

    ttft: NDArray[np.float64]
    e2el: NDArray[np.float64]
    gaps: NDArray[np.float64]
    loop_lag_p99: float | None


@contextlib.contextmanager
def process(*arguments: str, cores: set[int]) -> Iterator[str]:
    """Run a server during the block. Yield its URL: the last word of its line, or the last but one."""
    child = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    os.sched_setaffinity(child.pid, cores)
    try:
        line = child.stdout.readline().partition(",")[0].split()[-1]
        yield line if line.startswith("http") else f"http://{line}"
    finally:
        child.terminate()
        child.wait()


@functools.cache
def vocabulary() -> list[str]:
    return WORDS.read_text().split()


def prompt(number: int) -> str:
    """Return a prompt of 50 plain words, different for each number."""
    vocabulary_words = vocabulary()
    indices = np.random.default_rng([number < 0, abs(number)]).integers(0, len(vocabulary_words), 50)
    return " ".join(vocabulary_words[index] for index in indices)


@functools.cache
def filled() -> Path:
    """Return the file of a filled cache, which is made once."""
    folder = tempfile.mkdtemp(prefix="sweep-gateway-cache-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "answers"
    cores = set(os.sched_getaffinity(0))
    body = {"model": "simulated", "max_tokens": TOKENS, "temperature": 0, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    quick = ["backends.simulated_server", "--config", json.dumps({"ttft": {"mean": 0}, "itl": {"mean": 0}})]
    with process(*quick, cores=cores) as engine:
        settings = json.dumps({"cache": {"path": str(path)}})
        arguments = ["sweep.gateway.server", "--to", engine, "--settings", settings]
        with process(*arguments, cores=cores) as url, httpx.Client(timeout=60) as client:
            for number in range(CACHED):
                client.post(f"{url}/v1/completions", json=body | {"prompt": prompt(CACHED + number)}).raise_for_status()
    return path


def run(load: Load, settings: Mapping[str, Any] | None, seconds: float) -> Figures:
    """Measure one load through one form of the gateway or, if `settings` is None, directly."""
    cores = sorted(os.sched_getaffinity(0))
    server_cores, client_cores = set(cores[:-1]) or set(cores), {cores[-1]}
    count = load.streams * max(3, round(seconds / (TTFT + TOKENS * ITL)))
    requests = [Request(uuid.uuid4().hex, prompt(number), TOKENS) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="sweep-gateway-") as name:
        log = Path(name) / "log"
        config = {"ttft": {"mean": TTFT}, "itl": {"mean": ITL}, "log": str(log)}
        with contextlib.ExitStack() as servers:
            engine = ["backends.simulated_server", "--config", json.dumps(config)]
            url = servers.enter_context(process(*engine, cores=server_cores))
            if settings is not None:
                if settings:
                    path = shutil.copy(filled(), name)
                    settings = {"cache": {**settings["cache"], "path": path, "capacity": 2 * CACHED}}
                arguments = ["--to", url, "--settings", json.dumps(settings)]
                url = servers.enter_context(process("sweep.gateway.server", *arguments, cores=server_cores))
                httpx.get(f"{url}/gateway/state")
            target = Target(url, "simulated", ignore_eos=True)
            warmup = [Request(uuid.uuid4().hex, prompt(-number), 1) for number in range(1, WARM_UP + 1)]
            result = measure(target, warmup, requests, load.mode(count), folder=Path(name) / "job", cpus=client_cores)
            lag = None if settings is None else httpx.get(f"{url}/gateway/state").json()["loop_lag_p99"]
        return figures(result, log, lag)


def figures(result: Measurement, log: Path, lag: float | None) -> Figures:
    """Return the differences between the client's times and the engine's."""
    truths = read_log(log)
    ttft, e2el, gaps = [], [], []
    for record in result.records:
        assert record.error is None, record.error
        truth = truths[record.request_id, 0]
        true = [(write - truth.arrival) / 1e9 for write in truth.writes]
        stamped = [us / 1e6 for us in record.chunk_us]
        ttft.append(stamped[0] - true[0])
        e2el.append(stamped[-1] - true[-1])
        gaps += [abs((b - a) - (d - c)) for (a, b), (c, d) in zip(pairwise(stamped), pairwise(true), strict=False)]
    return Figures(np.array(ttft), np.array(e2el), np.array(gaps), lag)


def table(loads: list[Load], repeats: int, seconds: float) -> list[str]:
    """Return the lines of the table: medians over the runs."""
    rows = []
    for load in loads:
        runs = {form: [run(load, settings, seconds) for _ in range(repeats)] for form, settings in FORMS.items()}
        for form, results in runs.items():
            added = [
                _added(results, runs["direct"], series, share) for series in ("ttft", "e2el") for share in (50, 99)
            ]
            gaps = 1e3 * float(np.median([np.percentile(each.gaps, 99) for each in results]))
            lags = [each.loop_lag_p99 for each in results if each.loop_lag_p99 is not None]
            lag = f"{1e3 * float(np.median(lags)):.1f}" if lags else "–"
            pairs = [f"{added[index]:.2f} / {added[index + 1]:.2f}" for index in (0, 2)]
            rows.append([load.name, form, *(["–"] * 2 if form == "direct" else pairs), f"{gaps:.2f}", lag])
            print(*rows[-1], file=sys.stderr, flush=True)
    headings = (
        "streams | form | added TTFT p50 / p99, ms | added E2E p50 / p99, ms | ITL error p99, ms | loop lag p99, ms"
    )
    return markdown_table(headings, rows)


def _added(results: list[Figures], direct: list[Figures], series: str, share: float) -> float:
    """Return the errors' percentile through the gateway minus the direct path's median, in ms."""
    through = np.median([np.percentile(getattr(each, series), share) for each in results])
    return 1e3 * float(through - np.median([np.percentile(getattr(each, series), 50) for each in direct]))


def circumstances(before: float) -> str:
    """Return a sentence on what was measured, and how busy the machine was (one-minute load averages)."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("uvicorn", "uvloop", "httptools", "faiss-cpu")
    )
    cores, after = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"Commit {commit()}, Python {platform.python_version()}, {versions}; {cores} cores, load average {before:.1f} "
        f"when it began and {after:.1f} when it ended, which includes its own."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,16,64,256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    options = parser.parse_args()
    for form in set(FORMS) - {"direct", *options.forms.split(",")}:
        del FORMS[form]
    loads = [Load(16, spread=True), *(Load(int(streams)) for streams in options.streams.split(",") if streams)]
    before = os.getloadavg()[0]
    lines = table(loads, options.repeats, options.seconds)
    lines += ["", *textwrap.wrap(circumstances(before), 120)]
    publish(lines, options.write, MARKS)


if __name__ == "__main__":
    main()

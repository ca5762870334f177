"""Accuracy of the measuring client against a server that logs its true times, with vLLM's client for comparison.

    python -m benchmarks.client [--vllm-python PYTHON] [--rows closed-256,…] [--repeats 3]

The server (backends/simulated_server) is bound to one core and the client to another. Each row gives, request by
request and matched by x-request-id, |what the client reports − what the server did| as p50 / p99: TTFT from the
request's arrival in the server's kernel to the first token's write, every ITL, TPOT, E2E. CPU is that of the client
process between the first request and the last token, per 1,000 tokens. "Load kept" is the duration that an ideal client
would have had with the server's true times, over the actual duration. With --vllm-python (an interpreter that has vLLM)
the rows are also run with `vllm bench serve`, in the same run. The speed of a shared machine varies, so each row is run
several times, alternating between the clients: the table has each client's run of median CPU per token, and the ratio
is the median over the pairs. Nothing else should run: the last line reports other load.
"""

import argparse
import contextlib
import heapq
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from backends.simulated_server.truth import Truth, read_log
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop, Mode, OpenLoop
from sweep.client.process import PRIORITY
from sweep.client.wire import Target
from sweep.numbers.quantile import quantile
from sweep.records import Request

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "sweep" / "inputs" / "data" / "tokenizer"
PROMPT_TOKENS = 100
TTFT = 0.05  # s
# `vllm bench serve` without the console command, which the CPU build does not have.
VLLM_BENCH = (
    "import sys; from vllm.utils.argparse_utils import FlexibleArgumentParser; "
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Row:
    """One load on a server with one timing."""

    name: str
    requests: int
    concurrency: int
    tokens: int = 128
    itl: float = 0.02  # s
    ttft: float = TTFT
    rate: float | None = None  # requests per second, Poisson; None: closed loop
    flat_out: bool = False  # the server answers at once, coalesces events and keeps no log
    alone: bool = False  # shows the server's limit, so it is run with our client only

    def due(self) -> list[float]:
        """Due time of each request, s; all zero in a closed loop."""
        if self.rate is None:
            return [0.0] * self.requests
        rng = random.Random(0)
        times, now = [], 0.0
        for _ in range(self.requests):
            now += rng.expovariate(self.rate)
            times.append(now)
        return times

    def ideal_duration(self, services: Sequence[float]) -> float:
        """Time from the first send to the last token, s, with an ideal client.

        `services`: the server's true times of all requests in order, each from its arrival to its last token.
        """
        slots = [0.0] * self.concurrency
        end, due = 0.0, self.due()
        for when, service in zip(due, services, strict=True):
            begin = max(when, heapq.heappop(slots))
            heapq.heappush(slots, begin + service)
            end = max(end, begin + service)
        return end - due[0]


ROWS = [
    Row("closed-1", 6, 1),
    Row("closed-64", 256, 64),
    Row("closed-256", 1024, 256),
    Row("closed-1000", 2000, 1000, itl=0.05),
    Row("closed-1000-50k", 3000, 1000, alone=True),  # demands 50,000 tokens/s of the server
    Row("poisson-50", 500, 250, tokens=365, rate=50.0),
    Row("flat-tokens", 1500, 64, tokens=1024, itl=0.0, ttft=0.0, flat_out=True),
    Row("flat-requests", 20_000, 64, tokens=1, itl=0.0, ttft=0.0, flat_out=True),
]


@dataclass
class Result:
    """One client's report of a row, and its cost."""

    # x-request-id -> (ttft, gaps between chunks), s
    answers: dict[str, tuple[float, Sequence[float]]]
    failed: int
    tokens: int
    cpu_seconds: float
    peak_memory_bytes: int
    duration: float  # s; of flat-out rows, by the client's clock
    errors: dict[str, list[float]] = field(default_factory=dict)  # s, absolute

    @property
    def cpu_per_token(self) -> float:
        """s."""
        return self.cpu_seconds / self.tokens if self.tokens else float("inf")


class Run(NamedTuple):
    """One client on one row, once."""

    result: Result
    line: str  # of the table


# -- the server


@contextlib.contextmanager
def serving(row: Row, log: Path, core: int) -> Iterator[tuple[str, int]]:
    """Run the server; yields its URL and process id. Its log is complete afterwards."""
    config: dict[str, Any] = {"ttft": {"mean": row.ttft}, "itl": {"mean": row.itl}, "log": str(log)}
    if row.flat_out:
        config |= {"log": None, "events_per_write": 64}
    command = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    _alone_on(process.pid, core)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().rsplit(':', 1)[1].strip()}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _alone_on(pid: int, core: int) -> None:
    """Bind a process to a core with priority over other processes there, as our client does itself if permitted."""
    os.sched_setaffinity(pid, {core})
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)


# -- the clients


def ours(row: Row, url: str, folder: Path, core: int) -> Result:
    mode: Mode = ClosedLoop(row.concurrency)
    if row.rate is not None:
        mode = OpenLoop(array("d", row.due()), row.concurrency)
    prompt = " ".join(["word"] * PROMPT_TOKENS)
    requests = [Request(f"sweep-{i}", prompt, row.tokens) for i in range(row.requests)]
    measurement = measure(Target(url, "simulated", ignore_eos=True), [], requests, mode, folder=folder, cpus={core})
    answers: dict[str, tuple[float, Sequence[float]]] = {}
    ends = []
    for record in measurement.records:
        if record.error is None:
            gaps = [(b - a) / 1e6 for a, b in pairwise(record.chunk_us)]
            answers[record.request_id] = (record.chunk_us[0] / 1e6, gaps)
            ends.append(record.sent + record.chunk_us[-1] / 1e6)
    report = measurement.report
    return Result(
        answers=answers,
        failed=len(measurement.records) - len(answers),
        tokens=sum(measurement.records.output_tokens),
        cpu_seconds=report.cpu_seconds,
        peak_memory_bytes=report.peak_memory_bytes,
        duration=max(ends) - min(measurement.records.sent),
    )


def vllm(row: Row, url: str, folder: Path, core: int, python: str) -> Result:
    """`vllm bench serve` on the same row, its CPU time read from outside while it runs."""
    arguments = {
        "backend": "openai",
        "base-url": url,
        "endpoint": "/v1/completions",
        "model": "simulated",
        "tokenizer": str(TOKENIZER),
        "dataset-name": "random",
        "random-input-len": PROMPT_TOKENS,
        "random-output-len": row.tokens,
        "num-prompts": row.requests,
        "max-concurrency": row.concurrency,
        "request-rate": row.rate or "inf",
        "request-id-prefix": "vllm-",
        "result-dir": str(folder),
        "result-filename": "result.json",
        "ready-check-timeout-sec": 0,
    }
    flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    command = [python, "-c", VLLM_BENCH, *flags, *(f"--{name}={value}" for name, value in arguments.items())]
    folder.mkdir()
    with (folder / "output").open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        watched = psutil.Process(process.pid)
        _alone_on(process.pid, core)
        cpu: list[tuple[float, float]] = []  # (time, CPU seconds so far)
        memory = 0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                times = watched.cpu_times()
                cpu.append((time.monotonic(), times.user + times.system))
                memory = max(memory, watched.memory_info().rss)
            time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"vllm bench serve failed: {(folder / 'output').read_text()[-2000:]}")
    content = json.loads((folder / "result.json").read_text())
    answers = {
        f"vllm-{i}": (ttft, gaps)
        for i, (ttft, gaps, error) in enumerate(zip(content["ttfts"], content["itls"], content["errors"], strict=True))
        if not error
    }
    begin = min(content["start_times"])
    used = _at(cpu, begin + content["duration"]) - _at(cpu, begin)
    return Result(
        answers=answers,
        failed=row.requests - len(answers),
        tokens=sum(content["output_lens"]),
        cpu_seconds=used,
        peak_memory_bytes=memory,
        duration=content["duration"],
    )


def _at(readings: list[tuple[float, float]], when: float) -> float:
    """Linear interpolation of readings at a time."""
    for (t0, v0), (t1, v1) in pairwise(readings):
        if t0 <= when <= t1:
            return v0 + (v1 - v0) * (when - t0) / (t1 - t0)
    return readings[0][1] if when < readings[0][0] else readings[-1][1]


# -- the comparison


def compare(row: Row, result: Result, truths: dict[tuple[str, int], Truth]) -> float:
    """Fill in the absolute errors, request by request; returns the share of the load that was kept."""
    errors: dict[str, list[float]] = {name: [] for name in ("ttft", "itl", "tpot", "e2e")}
    matched = []
    for request_id, (ttft, gaps) in result.answers.items():
        truth = truths[request_id, 0]
        matched.append(truth)
        writes = truth.writes
        errors["ttft"].append(abs(ttft - (writes[0] - truth.arrival) / 1e9))
        errors["e2e"].append(abs(ttft + sum(gaps) - (writes[-1] - truth.arrival) / 1e9))
        if len(writes) > 1:
            true_tpot = (writes[-1] - writes[0]) / 1e9 / (len(writes) - 1)
            errors["tpot"].append(abs(sum(gaps) / (len(writes) - 1) - true_tpot))
        if len(gaps) == len(writes) - 1:
            errors["itl"] += [abs(gap - (b - a) / 1e9) for gap, (a, b) in zip(gaps, pairwise(writes), strict=True)]
    result.errors = errors
    matched.sort()
    true_duration = (max(truth.last_write for truth in matched) - matched[0].arrival) / 1e9
    services = [(truth.last_write - truth.arrival) / 1e9 for truth in matched]
    return min(1.0, row.ideal_duration(services) / true_duration) if len(services) == row.requests else 0.0


def quantiles(values: list[float]) -> str:
    """p50 / p99 in ms."""
    if len(values) < 2:
        return "–"
    p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
    return f"{p50 * 1e3:.3f} / {p99 * 1e3:.3f}"


def line(row: Row, client: str, result: Result, share: float | None) -> str:
    errors = [quantiles(result.errors.get(name, [])) for name in ("ttft", "itl", "tpot", "e2e")]
    kept_share = "–" if share is None else f"{share:.1%}"
    cells = [
        row.name,
        client,
        *errors,
        f"{result.cpu_per_token * 1000:.4f}" if result.tokens else "–",
        kept_share,
        f"{result.peak_memory_bytes / 1e6:.0f}",
        f"{result.tokens / result.duration:,.0f}",
        f"{len(result.answers) / result.duration:,.0f}",
        str(result.failed),
    ]
    return "| " + " | ".join(cells) + " |"


MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
HEADER = [
    "row",
    "client",
    "TTFT error p50 / p99, ms",
    "ITL error p50 / p99, ms",
    "TPOT error p50 / p99, ms",
    "E2E error p50 / p99, ms",
    "CPU s / 1,000 tokens",
    "load kept",
    "peak MB",
    "tokens/s",
    "requests/s",
    "failed",
]


def run_row(row: Row, python: str | None, cores: tuple[int, int]) -> Run:
    """Run one row with one client: ours, unless `python` has vLLM."""
    with tempfile.TemporaryDirectory(prefix="sweep-client-") as name:
        folder = Path(name)
        with serving(row, folder / "log", cores[0]) as (url, _):
            run = folder / "run"
            result = ours(row, url, run, cores[1]) if python is None else vllm(row, url, run, cores[1], python)
        share = None if row.flat_out else compare(row, result, read_log(folder / "log"))
        return Run(result, line(row, "sweep" if python is None else "vllm", result, share))


def middle(runs: Sequence[Run]) -> Run:
    """The run of median CPU per token."""
    return sorted(runs, key=lambda run: run.result.cpu_per_token)[len(runs) // 2]


def ratios(row: Row, mine: Sequence[Run], theirs: Sequence[Run]) -> str:
    """Ratios of the two clients over alternating runs, which hold on a busy machine as well."""
    pairs = zip(mine, theirs, strict=True)
    cpu = sorted(errors_of.result.cpu_per_token / their_run.result.cpu_per_token for errors_of, their_run in pairs)
    text = f"{row.name}: CPU per token {statistics.median(cpu):.2f} of vLLM's"
    text += f" ({cpu[0]:.2f} to {cpu[-1]:.2f} in {len(cpu)} pairs)" if len(cpu) > 1 else ""
    errors = [middle(runs).result.errors.get("ttft") for runs in (mine, theirs)]
    if all(errors):
        p99 = [quantile(values, 0.99) for values in errors if values]
        text += f", TTFT error p99 1/{p99[1] / max(p99[0], 1e-6):,.0f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="interpreter with vLLM; without it only our client runs")
    parser.add_argument("--rows", help="comma-separated; all by default: " + ", ".join(row.name for row in ROWS))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row by each client (default: 3)")
    parser.add_argument("--write", type=Path, help="also put the table into this file, between its two marks")
    parser.add_argument("--cores", default="0,1", help="of the server and of the client")
    options = parser.parse_args()
    selected = options.rows.split(",") if options.rows else [row.name for row in ROWS]
    server_core, client_core = map(int, options.cores.split(","))
    cores = server_core, client_core
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    compared: list[str] = []
    load: list[float] = []
    print("\n".join(lines), flush=True)
    for row in ROWS:
        if row.name not in selected:
            continue
        mine, theirs = [], []
        for _ in range(options.repeats):
            load.append(other_load())
            mine.append(run_row(row, None, cores))
            if options.vllm_python and not row.alone:
                theirs.append(run_row(row, options.vllm_python, cores))
        chosen = [middle(runs).line for runs in (mine, theirs) if runs]
        print("\n".join(chosen), flush=True)
        lines += chosen
        if theirs:
            compared.append(ratios(row, mine, theirs))
    compared.append(f"other load before each run: at most {max(load):.0f} % of the machine's cores")
    lines += ["", *(f"* {comparison}" for comparison in compared)]
    print("\n".join(lines[-len(compared) - 1 :]))
    if options.write:
        before, _, rest = options.write.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        options.write.write_text(f"{before}{MARKS[0]}\n{chr(10).join(lines)}\n{MARKS[1]}{after}")


def other_load() -> float:
    """CPU use of all other processes in %, over half a second in which this one is idle."""
    return psutil.cpu_percent(interval=0.5)


if __name__ == "__main__":
    main()

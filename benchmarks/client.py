"""Measures the accuracy of the measuring client against a server that logs its true times, and compares two rivals.

    python -m benchmarks.client [--vllm-python PYTHON] [--sglang-python PYTHON] [--rows closed-256,…] [--repeats 3]

The server (backends/simulated_server) is bound to one core and the client to another. Ours is the whole command (`sweep
run backend=openai …`). The columns that it publishes in requests.parquet are compared with the server's log, request by
request, matched by x-request-id. The errors are |reported − true|, p50 / p99, of `ttft` (in an open loop of
`service_ttft`, since the server does not know the schedule), every gap, `tpot` and `e2el`. The true TTFT is from the
request's arrival in the server's kernel to the write of the first token. The table also has the trial's `ttft_p50` and
`ttft_p99`, its outcome and `turnaround_share`. CPU is the client process's time between the first request and the last
token, per 1,000 tokens. "Load kept" is the duration that an ideal client would have had with the server's true times,
divided by the actual duration. With --vllm-python (an interpreter that has vLLM) the rows are also run with `vllm bench
serve`, and with --sglang-python (one that has SGLang's wheel; its dependencies are not needed) with the Rust client of
that wheel. That client sends no id and reports none, so the server names its answers (benchmarks/naming_server.py). The
speed of a shared machine varies, so each row is run several times, alternating between the clients. The table has each
client's run with the median CPU per token; a ratio is the median over the pairs. Nothing else should run: the last line
reports other load.
"""

import argparse
import contextlib
import heapq
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq

from analysis.table import text_table
from backends.simulated_server.truth import Truth, read_log
from benchmarks.documents import write_section
from sweep.client.process import PRIORITY
from sweep.disk.run_files import RunPaths, read_trials
from sweep.numbers.quantile import quantile

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
# What `python -m sglang.benchmark.rust_client` calls, without the package around it, which would import torch.
SGLANG_BENCH = (
    "import importlib.util, sys; "
    "(folder,) = importlib.util.find_spec('sglang').submodule_search_locations; "
    "sys.path.insert(0, folder + '/srt/rust_extensions'); "
    "import _bench; _bench.run_argv(['sglang-bench', *sys.argv[1:]])"
)
RIVALS = {"vllm": "vLLM", "sglang": "SGLang"}
PrintedLine = tuple[float, str]  # its time in s, and its text
CpuReading = tuple[float, float]  # its time in s, and the CPU seconds until then


@dataclass(frozen=True)
class Row:
    """A row of the table: one load on a server with one timing."""

    name: str
    requests: int
    concurrency: int
    tokens: int = 128
    itl: float = 0.02  # s
    ttft: float = TTFT
    rate: float | None = None  # requests per second, Poisson; None: closed loop
    flat_out: bool = False  # the server answers at once, coalesces events and keeps no log
    plain: bool = False  # the same, but no side parses HTTP: benchmarks/flat_out.py
    alone: bool = False  # run with our client only: it shows the server's limit, or a path that the others lack
    tls: bool = False  # the server's own TLS: benchmarks/tls_server.py
    gateway: bool = False  # `sweep gateway` forwards, on the server's core; its delay counts as an error

    def ideal_duration(self, due: Sequence[float], services: Sequence[float]) -> float:
        """Return the time in s from the first send to the last token, with an ideal client.

        Args:
            due: when the load scheduled each request, s, ascending.
            services: the server's true times of all requests in order, each from its arrival to its last token.
        """
        slots = [0.0] * self.concurrency
        end = 0.0
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
    Row("closed-2000-100k", 6000, 2000, alone=True),  # demands 100,000
    Row("long-8192", 64, 32, tokens=8192, itl=0.002),
    Row("tls-256", 1024, 256, alone=True, tls=True),
    Row("gateway-16", 128, 16, alone=True, gateway=True),
    Row("poisson-50", 500, 250, tokens=365, rate=50.0),
    Row("flat-tokens", 1500, 64, tokens=1024, itl=0.0, ttft=0.0, flat_out=True),
    Row("flat-requests", 40_000, 64, tokens=1, itl=0.0, ttft=0.0, flat_out=True, plain=True),
]


class Answer(NamedTuple):
    """One client's latencies of one request, in s."""

    ttft: float
    tpot: float | None  # None if the client reported none
    e2el: float
    gaps: Sequence[float]  # between chunks


@dataclass
class Result:
    """One client's report on a row, and the client's cost."""

    answers: dict[str, Answer]  # answers by x-request-id
    failed: int
    tokens: int
    cpu_seconds: float
    peak_memory_bytes: int
    duration: float  # s; for flat-out rows, by the client's clock
    due: list[float]  # s, for each request; empty: when the server got it, since the client does not say
    outcome: str = "–"
    turnaround_share: float | None = None
    published: tuple[float | None, float | None] = (None, None)  # p50 and p99 of TTFT over the trial, s
    errors: dict[str, list[float]] = field(default_factory=dict)  # absolute errors in s
    true: tuple[float | None, float | None] = (None, None)  # p50 and p99 of TTFT by the server's log, s

    @property
    def cpu_per_token(self) -> float:
        """The CPU time per token, in s."""
        return self.cpu_seconds / self.tokens if self.tokens else float("inf")


class Run(NamedTuple):
    """One run of one client on one row."""

    result: Result
    load_kept: float | None
    limit: float | None = None  # requests/s that the server alone reaches


# -- the server


@contextlib.contextmanager
def serving(row: Row, log: Path, core: int) -> Iterator[str]:
    """Run the server, and the gateway if the row has one, and yield the URL. The log is complete afterwards."""
    config: dict[str, Any] = {"ttft": {"mean": row.ttft}, "itl": {"mean": row.itl}, "log": str(log)}
    if row.flat_out:
        config |= {"log": None, "events_per_write": 64}
    module = "benchmarks.tls_server" if row.tls else "benchmarks.naming_server"
    command = [sys.executable, "-m", module, "--config", json.dumps(config)]
    if row.plain:
        command = [sys.executable, "-m", "benchmarks.flat_out"]
    with _listening(command, core) as port:
        url = f"{'https' if row.tls else 'http'}://127.0.0.1:{port}"
        if not row.gateway:
            yield url
            return
        with _listening([sys.executable, "-m", "sweep", "gateway", "--to", url, "--port", "0"], core) as port:
            yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _listening(command: list[str], core: int) -> Iterator[int]:
    """Run a server alone on a core and yield the port that its first line names."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    _alone_on(process.pid, core)
    try:
        yield int(process.stdout.readline().partition(",")[0].rsplit(":", 1)[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def plain_limit(url: str, core: int) -> float:
    """Return the server's requests per second with a plain load generator on the client's core."""
    command = [sys.executable, "-m", "benchmarks.flat_out", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        _alone_on(process.pid, core)
        return float(process.communicate()[0])


def _alone_on(pid: int, core: int) -> None:
    """Bind a process to a core with priority over other processes there, as our client does itself if permitted."""
    os.sched_setaffinity(pid, {core})
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)


# -- the clients


def ours(row: Row, url: str, folder: Path, cores: tuple[int, int]) -> Result:
    """Run the whole command on the row and return what it published."""
    load = ["load=closed", f"load.concurrency={row.concurrency}", "load.stagger=0"]
    if row.rate is not None:
        load = ["load=poisson", f"load.rate={row.rate}", f"load.max_concurrency={row.concurrency}"]
    command = [
        *(sys.executable, "-m", "sweep", "backend=openai", f"backend.url={url}", "model=served", *load),
        *("workload=synthetic", f"workload.input_tokens={PROMPT_TOKENS}", f"workload.output_tokens={row.tokens}"),
        *(f"workload.num_requests={row.requests}", "workload.warmup_requests=0", "backend.continuous_usage=false"),
        *(f"backend.verify_tls={str(not row.tls).lower()}", "cluster=inline", "tracking=none", f"out={folder}"),
    ]
    output = folder.with_suffix(".output")
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        os.sched_setaffinity(process.pid, set(cores))  # the client takes the last of these cores
        if process.wait() not in (0, 1):  # status 1: the trial failed, as its outcome says
            raise RuntimeError(f"the command failed: {output.read_text()[-2000:]}")
    paths = RunPaths(folder)
    (trial,) = read_trials(paths.trials)
    files = paths.trial(trial["deployment_id"], trial["attempt"], trial["trial_id"])
    rows = pq.read_table(files.requests).to_pylist()
    prefix = "" if row.rate is None else "service_"
    answers = {
        each["request_id"]: Answer(
            each[f"{prefix}ttft"],
            each["tpot"],
            each[f"{prefix}e2el"],
            [(b - a) / 1e6 for a, b in pairwise(each["chunk_us"])],
        )
        for each in rows
        if each["error"] is None
    }
    return Result(
        answers=answers,
        failed=trial["num_failed"],
        tokens=trial["output_tokens"],
        cpu_seconds=trial["client_cpu_seconds"],
        peak_memory_bytes=trial["client_peak_memory_bytes"],
        duration=trial["duration"],
        due=[each["scheduled"] or 0.0 for each in rows],
        outcome=trial["outcome"],
        turnaround_share=trial["turnaround_share"],
        published=(trial[f"{prefix}ttft_p50"], trial[f"{prefix}ttft_p99"]),
    )


def theirs(row: Row, url: str, folder: Path, core: int, rival: str, python: str) -> Result:
    """Run a rival's client on the same row; its CPU time is read from outside while it runs."""
    folder.mkdir()
    printed, cpu, memory = _watched(_command_of(row, url, folder, rival, python), core, RIVALS[rival])
    content = json.loads((folder / "result.json").read_text())
    if rival == "vllm":
        begin, names = min(content["start_times"]), [f"vllm-{i}" for i in range(row.requests)]
    else:  # it says when it begins, and each answer's words are the name that the server gave the request
        begin = next(when for when, text in printed if text.startswith("Running "))
        names = [text.strip().partition(" ")[0] for text in content["generated_texts"]]
        names = list(map(str, range(row.requests))) if row.plain else names
    columns = zip(names, content["ttfts"], content["itls"], content["errors"], strict=True)
    answers = {
        name: Answer(ttft, sum(gaps) / max(1, len(gaps)), ttft + sum(gaps), gaps)
        for name, ttft, gaps, error in columns
        if not error
    }
    ttfts = [answer.ttft for answer in answers.values()]
    used = _at(cpu, begin + content["duration"]) - _at(cpu, begin)
    return Result(
        answers=answers,
        failed=row.requests - len(answers),
        tokens=sum(content["output_lens"]),
        cpu_seconds=used,
        peak_memory_bytes=memory,
        duration=content["duration"],
        due=[0.0] * row.requests if row.rate is None else [],
        published=(quantile(ttfts, 0.5), quantile(ttfts, 0.99)),
    )


def _command_of(row: Row, url: str, folder: Path, rival: str, python: str) -> list[str]:
    """Return a rival's command for a row, which writes result.json into the folder."""
    arguments = {
        "base-url": url,
        "model": "simulated",
        "tokenizer": str(TOKENIZER),
        "random-input-len": PROMPT_TOKENS,
        "random-output-len": row.tokens,
        "num-prompts": row.requests,
        "max-concurrency": row.concurrency,
        "request-rate": row.rate or "inf",
        "ready-check-timeout-sec": 0,
    }
    if rival == "vllm":
        code, flags = VLLM_BENCH, ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
        arguments |= {"backend": "openai", "endpoint": "/v1/completions", "dataset-name": "random"}
        arguments |= {"request-id-prefix": "vllm-", "result-dir": str(folder), "result-filename": "result.json"}
    else:
        code, flags = SGLANG_BENCH, ["--output-details", "--disable-retokenize", "--disable-tqdm"]
        arguments |= {"backend": "vllm-chat", "dataset-name": "random-ids", "random-range-ratio": 1}
        arguments |= {"worker-threads": 1, "warmup-requests": 0, "output-file": str(folder / "result.json")}
    return [python, "-c", code, *flags, *(f"--{name}={value}" for name, value in arguments.items())]


def _watched(command: list[str], core: int, title: str) -> tuple[list[PrintedLine], list[CpuReading], int]:
    """Run a client on one core; return what it printed, its readings of CPU time and its peak memory in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    printed: list[PrintedLine] = []
    cpu: list[CpuReading] = []
    memory = 0
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        watched = psutil.Process(process.pid)
        _alone_on(process.pid, core)
        output = process.stdout or ()
        reader = threading.Thread(target=lambda: printed.extend((time.monotonic(), text) for text in output))
        reader.start()
        while process.poll() is None:
            with contextlib.suppress(psutil.Error, OSError):
                cpu.append((time.monotonic(), time.clock_gettime(~process.pid << 3 | 2)))  # of all threads, in ns
                memory = max(memory, watched.memory_info().rss)
            time.sleep(0.05)
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{title}'s client failed: {''.join(text for _, text in printed)[-2000:]}")
    return printed, cpu, memory


def _at(readings: list[CpuReading], when: float) -> float:
    """Interpolate readings linearly at a time."""
    for (t0, v0), (t1, v1) in pairwise(readings):
        if t0 <= when <= t1:
            return v0 + (v1 - v0) * (when - t0) / (t1 - t0)
    return readings[0][1] if when < readings[0][0] else readings[-1][1]


# -- the comparison


def compare(row: Row, result: Result, truths: dict[tuple[str, int], Truth]) -> float:
    """Fill in the truth and the absolute errors, request by request. Return the share of the load that was kept."""
    errors: dict[str, list[float]] = {name: [] for name in ("ttft", "itl", "tpot", "e2e")}
    matched, true_ttft = [], []
    for request_id, answer in result.answers.items():
        truth = truths[request_id, 0]
        matched.append(truth)
        writes = truth.writes
        true_ttft.append((writes[0] - truth.arrival) / 1e9)
        errors["ttft"].append(abs(answer.ttft - true_ttft[-1]))
        errors["e2e"].append(abs(answer.e2el - (writes[-1] - truth.arrival) / 1e9))
        if len(writes) > 1 and answer.tpot is not None:
            errors["tpot"].append(abs(answer.tpot - (writes[-1] - writes[0]) / 1e9 / (len(writes) - 1)))
        if len(answer.gaps) == len(writes) - 1:
            pairs = zip(answer.gaps, pairwise(writes), strict=True)
            errors["itl"] += [abs(gap - (b - a) / 1e9) for gap, (a, b) in pairs]
    result.errors, result.true = errors, (quantile(true_ttft, 0.5), quantile(true_ttft, 0.99))
    matched.sort()
    true_duration = (max(truth.last_write for truth in matched) - matched[0].arrival) / 1e9
    services = [(truth.last_write - truth.arrival) / 1e9 for truth in matched]
    if len(services) != row.requests:
        return 0.0
    due = sorted(result.due) or [(truth.arrival - matched[0].arrival) / 1e9 for truth in matched]
    return min(1.0, row.ideal_duration(due, services) / true_duration)


def quantiles(values: list[float]) -> str:
    """Return p50 / p99 in ms."""
    return milliseconds((quantile(values, 0.5), quantile(values, 0.99))) if len(values) > 1 else "–"


def milliseconds(times: tuple[float | None, float | None]) -> str:
    return " / ".join("–" if time is None else f"{time * 1e3:.3f}" for time in times)


def outcomes(runs: Sequence[Run]) -> str:
    """Return the outcome of every run: one word if all agree."""
    counts = Counter(run.result.outcome for run in runs)
    return ", ".join(word if count == len(runs) else f"{word} {count}" for word, count in counts.items())


def line(row: Row, client: str, runs: Sequence[Run]) -> str:
    """Return the run with the median CPU per token, as a line of the table."""
    result, load_kept, _ = middle(runs)
    errors = [quantiles(result.errors.get(name, [])) for name in ("ttft", "itl", "tpot", "e2e")]
    cells = [
        row.name,
        client,
        outcomes(runs),
        "–" if row.flat_out else f"{milliseconds(result.published)} ({milliseconds(result.true)})",
        *errors,
        f"{result.cpu_per_token * 1000:.4f}" if result.tokens else "–",
        "–" if load_kept is None else f"{load_kept:.2%}",
        "–" if result.turnaround_share is None else f"{result.turnaround_share:.2%}",
        f"{result.peak_memory_bytes / 1e6:.0f}",
        f"{result.tokens / result.duration:,.0f}",
        f"{len(result.answers) / result.duration:,.0f}",
        str(result.failed),
    ]
    return text_table(HEADER, [cells]).markdown()[-1]


MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
HEADER = [
    "row",
    "client",
    "outcome",
    "TTFT p50 / p99 published (true), ms",
    "TTFT error p50 / p99, ms",
    "ITL error p50 / p99, ms",
    "TPOT error p50 / p99, ms",
    "E2E error p50 / p99, ms",
    "CPU s / 1,000 tokens",
    "load kept",
    "turnaround share",
    "peak MB",
    "tokens/s",
    "requests/s",
    "failed",
]


def run_row(row: Row, cores: tuple[int, int], rival: str = "", python: str = "") -> Run:
    """Run one row with one client: ours, or a rival's, which `python` has."""
    with tempfile.TemporaryDirectory(prefix="sweep-client-") as name:
        folder = Path(name)
        limit = None
        with serving(row, folder / "log", cores[0]) as url:
            run = folder / "run"
            if row.plain:
                limit = plain_limit(url, cores[1])
            result = theirs(row, url, run, cores[1], rival, python) if rival else ours(row, url, run, cores)
        share = None if row.flat_out else compare(row, result, read_log(folder / "log"))
        return Run(result, share, limit)


def middle(runs: Sequence[Run]) -> Run:
    """Return the run with the median CPU per token."""
    return sorted(runs, key=lambda run: run.result.cpu_per_token)[len(runs) // 2]


def ratios(row: Row, rival: str, mine: Sequence[Run], others: Sequence[Run]) -> str:
    """Return the two clients' ratios over alternating runs, which are also valid on a busy machine."""
    pairs = zip(mine, others, strict=True)
    cpu = sorted(our_run.result.cpu_per_token / their_run.result.cpu_per_token for our_run, their_run in pairs)
    text = f"{row.name}: CPU per token {statistics.median(cpu):.2f} of {RIVALS[rival]}'s"
    text += f" ({cpu[0]:.2f} to {cpu[-1]:.2f} in {len(cpu)} pairs)" if len(cpu) > 1 else ""
    errors = [middle(runs).result.errors.get("ttft") for runs in (mine, others)]
    if all(errors):
        p99 = [quantile(values, 0.99) for values in errors if values]
        text += f", TTFT error p99 1/{p99[1] / max(p99[0], 1e-6):,.0f}"
    return text


def limits(row: Row, runs: Sequence[Run]) -> list[str]:
    """Return the limit of the server alone, if it was measured."""
    rates = [run.limit for run in runs if run.limit is not None]
    text = f"{row.name}: the server alone answers {{:,.0f}} requests/s to a plain load generator (median of {{}} runs)"
    return [text.format(statistics.median(rates), len(rates))] if rates else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for rival, title in RIVALS.items():
        parser.add_argument(f"--{rival}-python", help=f"interpreter with {title}, whose client then runs as well")
    parser.add_argument("--rows", help="comma-separated; all by default: " + ", ".join(row.name for row in ROWS))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row by each client (default: 3)")
    parser.add_argument("--write", type=Path, help="also put the table into this file, between its two marks")
    parser.add_argument("--cores", default="0,1", help="of the server and of the client")
    options = parser.parse_args()
    selected = options.rows.split(",") if options.rows else [row.name for row in ROWS]
    server_core, client_core = map(int, options.cores.split(","))
    cores = server_core, client_core
    if server_core >= client_core:
        parser.error("--cores: the client's must be the higher one")
    lines = text_table(HEADER, []).markdown()
    compared: list[str] = []
    load: list[float] = []
    print("\n".join(lines), flush=True)
    for row in ROWS:
        if row.name not in selected:
            continue
        runs: dict[str, list[Run]] = {"": []}  # by rival; ours: ""
        runs |= {rival: [] for rival in RIVALS if vars(options)[f"{rival}_python"] and not row.alone}
        for _ in range(options.repeats):
            load.append(other_load())
            for rival, results in runs.items():
                results.append(run_row(row, cores, rival, vars(options).get(f"{rival}_python", "")))
        chosen = [line(row, rival or "sweep", results) for rival, results in runs.items()]
        print("\n".join(chosen), flush=True)
        lines += chosen
        mine = runs.pop("")
        compared += [ratios(row, rival, mine, results) for rival, results in runs.items()]
        compared += limits(row, mine)
    compared.append(f"other load before each run: at most {max(load):.0f}% of the machine's cores")
    lines += ["", *(f"* {comparison}" for comparison in compared)]
    print("\n".join(lines[-len(compared) - 1 :]))
    if options.write:
        write_section(options.write, MARKS, lines)


def other_load() -> float:
    """Return the CPU use of all other processes in %, over half a second in which this process is idle."""
    return psutil.cpu_percent(interval=0.5)


if __name__ == "__main__":
    main()

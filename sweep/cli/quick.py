"""`sweep quick`: one short run and a short search for a capacity, printed in five lines."""

import contextlib
import io
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.base.config import read_slo
from sweep.base.options import ConfigPath
from sweep.base.records import Outcome
from sweep.base.wording import number
from sweep.cli.capacity import ENDPOINT, arguments_of_run, folder_of
from sweep.cli.run import run
from sweep.disk.run_files import RunPaths, read_claims, read_trials
from sweep.drive.endpoint_model import local_server, with_dialect, with_model

BUDGET = "60s"  # measuring time; start-up, pauses between probes and warm-up at most double it
SHORT_LENGTHS = {"workload.input_tokens": "256", "workload.output_tokens": "64"}
QUICK_KEYS = {"workload.warmup_requests": "1", "report": "false"}
LONE_USER = {"load": "closed", "load.concurrency": "1", "workload.num_requests": "3"}
USUAL = {"ttft": 1.0, "tpot": 0.05}  # s: an answer that begins soon, and streams faster than people read
ROOM = {"ttft": 2.0, "tpot": 1.5}  # a bound is at least this multiple of a single request's latency


def look(url: str | None, slo: str | None, overrides: Sequence[str], folders: Sequence[str]) -> int:
    """Measure an endpoint and print five lines; return the exit status. Raises ConfigError for bad input."""
    url = url or local_server()
    read_slo(slo)
    typed = dict(override.partition("=")[::2] for override in overrides)
    lengths = {} if "workload" in typed else SHORT_LENGTHS
    keys = QUICK_KEYS | lengths | {"out": folder_of("quick", url)} | typed
    out, shared = keys["out"], _pairs(keys)
    arguments_of_run(url, slo or "ttft=1s", BUDGET, [*shared, *overrides])  # refuses bad input before anything is sent
    options = ConfigPath.of_user(folders)
    settings = ENDPOINT | {"backend.url": url} | keys | LONE_USER
    settings = {key: setting for key, setting in settings.items() if key in LONE_USER or not key.startswith("load.")}
    single = with_model(_pairs(settings), options)
    single, answered = with_dialect(single, options)
    needed = single[len(settings) :]  # the model, and what the endpoint needs
    print(f"measuring {url} for at most two minutes; Ctrl-C ends it; details: {out}", file=sys.stderr)
    status, log = _quietly([*single, "fresh=true"], folders)
    alone = _row(out, 1) if status in (0, 1) else None
    if alone is None:
        print(log, end="", file=sys.stderr)
        return status or 1
    bounds = slo or _sensible_slo(alone)
    line, _ = arguments_of_run(url, bounds, BUDGET, [*shared, *needed])
    status, log = _quietly(line, folders)
    claims = read_claims(RunPaths(Path(out)))
    if len(claims) != 1:
        print(log, end="", file=sys.stderr)
        return status or 1
    (claim,) = claims.values()
    capacity, limit, _ = (line.partition(":")[2].strip() for line in claim["lines"])
    again = _pairs(lengths | {key: setting for key, setting in typed.items() if key != "out"})
    command = shlex.join(["sweep", "capacity", url, "--slo", bounds, *again])
    print(f"serves:   {answered or url}")
    print(f"alone:    {_latencies(alone)}")
    print(f"full:     {_throughput(out)}")
    ended = f" ({claim['ended']})" if claim["ended"] else ""
    print(f"capacity: {capacity}, at {bounds}{ended}")
    print(f"limit:    {limit}; for a narrower answer: {command}")
    return status


def _pairs(settings: Mapping[str, str]) -> list[str]:
    return [f"{key}={setting}" for key, setting in settings.items()]


def _quietly(arguments: Sequence[str], folders: Sequence[str]) -> tuple[int, str]:
    """Run a command line without printing; return its exit status and its output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = run(arguments, folders)
    return status, printed.getvalue()


def _closed_loops(out: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of closed loops with answered requests."""
    for row in read_trials(RunPaths(Path(out)).trials):
        if row["concurrency"] and row["num_requests"] and row["outcome"] in (Outcome.OK, Outcome.INVALID):
            yield row


def _row(out: str, users: int) -> Mapping[str, Any] | None:
    return next((row for row in _closed_loops(out) if row["concurrency"] == users), None)


def _sensible_slo(alone: Mapping[str, Any]) -> str:
    """Return the usual bounds, raised to a round number where a single request alone comes too close to them."""
    bounds = []
    for latency, usual in USUAL.items():
        least = max(usual, ROOM[latency] * (alone[f"{latency}_p50"] or 0.0))
        step = 10.0 ** math.floor(math.log10(least))
        bound = next(bound for bound in (step, 2 * step, 5 * step, 10 * step) if bound >= least * 0.999)
        bounds.append(f"{latency}={1000 * bound:g}ms" if bound < 1 else f"{latency}={bound:g}s")
    return ",".join(bounds)


def _latencies(row: Mapping[str, Any]) -> str:
    """Describe the latencies of requests sent one after another."""
    ttft, tpot, e2el = (f"{number(1000 * (row[f'{name}_p50'] or math.nan))} ms" for name in ("ttft", "tpot", "e2el"))
    sizes = [row[f"{side}_length_mean"] for side in ("input", "output")]
    lengths = " ({:,.0f} tokens in, {:,.0f} out)".format(*sizes) if all(sizes) else ""
    return f"first token after {ttft}, then one in {tpot}, {e2el} in all{lengths}"


def _throughput(out: str) -> str:
    """Describe the busiest closed loop."""
    busiest = max(_closed_loops(out), key=lambda row: row["output_throughput"] or 0.0)
    tokens, requests = number(busiest["output_throughput"]), number(busiest["request_throughput"])
    return f"{tokens} output tokens/s, {requests} requests/s, with {busiest['concurrency']} users"

"""`sweep quick`: one short run and a short search for a capacity, printed in five lines."""

import contextlib
import io
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.base.config import ConfigError, read_slo
from sweep.base.options import ConfigPath
from sweep.base.records import Fault, Outcome
from sweep.base.wording import number
from sweep.cli.run import run
from sweep.cli.searches.capacity import ENDPOINT, arguments_of_run, folder_of
from sweep.disk.run_files import RunPaths, read_claims, read_trials
from sweep.drive.endpoint_model import local_server, with_dialect, with_model
from sweep.search.launch_search import PROBE_TRIES

INTERRUPTED = 130  # exit status
BUDGET = "60s"  # of measurement; the start, pauses between probes and requests to warm up take as long again at most
SHORT_LENGTHS = {"workload.input_tokens": "256", "workload.output_tokens": "64"}
QUICK_KEYS = {"workload.warmup_requests": "1", "report": "false"}
LONE_USER = {"load": "closed", "load.concurrency": "1", "workload.num_requests": "3"}
USUAL = {"ttft": 1.0, "tpot": 0.05}  # s: an answer that begins soon, and streams faster than people read
ROOM = {"ttft": 2.0, "tpot": 1.5}  # a bound is at least this multiple of a single request's latency


def quick_report(url: str | None, slo: str | None, overrides: Sequence[str], folders: Sequence[str]) -> int:
    """Measure an endpoint and print five lines; return the exit status. Raises ConfigError for bad input."""
    url = url or local_server()
    read_slo(slo)
    typed = dict(override.partition("=")[::2] for override in overrides)
    lengths = {} if "workload" in typed else SHORT_LENGTHS
    keys = QUICK_KEYS | lengths | {"out": folder_of("quick", url)} | typed
    if typed.get("dry_run", "false") != "false":
        raise ConfigError(f"dry_run={typed['dry_run']}: expected no setting; a quick answer is measured")
    out, shared = keys["out"], _pairs(keys)
    arguments_of_run(url, slo or "ttft=1s", BUDGET, [*shared, *overrides])  # refuses bad input before anything is sent
    options = ConfigPath.of_user(folders)
    settings = ENDPOINT | {"backend.url": url} | keys | LONE_USER
    settings = {key: setting for key, setting in settings.items() if key in LONE_USER or not key.startswith("load.")}
    single = with_model(_pairs(settings), options)
    single, answered = with_dialect(single, options)
    needed = single[len(settings) :]  # the model, and what the endpoint needs
    print(f"measuring {url} for at most two minutes; Ctrl-C stops it; details: {out}", file=sys.stderr)
    print(f"serves:   {answered or url}")
    for _ in range(PROBE_TRIES):
        status, log = _quietly([*single, "fresh=true"], folders)
        alone = next(_closed_loops(out), None)
        if status == INTERRUPTED or alone is None or alone["fault"] != Fault.SURROUNDINGS:
            break
    bounds, claims = slo or "", {}
    if alone is not None:
        print(f"alone:    {_latencies(alone)}")
    if alone is not None and status != INTERRUPTED:
        bounds = slo or _sensible_slo(alone)
        arguments, _ = arguments_of_run(url, bounds, BUDGET, [*shared, *needed])
        status, log = _quietly(arguments, folders)
        claims = read_claims(RunPaths(Path(out)))
    if len(claims) != 1:
        print("" if status == INTERRUPTED else log, end="", file=sys.stderr)
        return status or 1
    (claim,) = claims.values()
    capacity, limit, _ = (line.partition(":")[2].strip() for line in claim["lines"])
    again = _pairs(lengths | {key: setting for key, setting in typed.items() if key != "out"})
    command = shlex.join(["sweep", "capacity", url, "--slo", bounds, *again])
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
        status = run(arguments, folders, settled=True)
    return status, printed.getvalue()


def _closed_loops(out: str) -> Iterator[Mapping[str, Any]]:
    """The rows of closed loops in which the endpoint answered requests, if there are any yet."""
    trials = RunPaths(Path(out)).trials
    rows = read_trials(trials) if trials.exists() else ()
    yield from (row for row in rows if row["concurrency"] and (row["num_failed"] or 0) < (row["num_requests"] or 0))


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
    """Describe the latencies of requests sent one after another, or why they are unknown."""
    if row["outcome"] != Outcome.OK:
        return f"not measured ({row['outcome']}: {row['reason']})"
    ttft, tpot, e2el = (f"{number(1000 * (row[f'{name}_p50'] or math.nan))} ms" for name in ("ttft", "tpot", "e2el"))
    sizes = [row[f"{side}_length_mean"] for side in ("input", "output")]
    lengths = " ({:,.0f} tokens in, {:,.0f} out)".format(*sizes) if all(sizes) else ""
    return f"first token after {ttft}, then one in {tpot}, {e2el} in total{lengths}"


def _throughput(out: str) -> str:
    """Describe the busiest closed loop."""
    crowded = [row for row in _closed_loops(out) if row["concurrency"] > 1]
    if not any(row["outcome"] == Outcome.OK for row in crowded):
        return "not measured" + (f" ({crowded[-1]['outcome']}: {crowded[-1]['reason']})" if crowded else "")
    busiest = max(crowded, key=lambda row: row["output_throughput"] or 0.0)
    tokens, requests = number(busiest["output_throughput"]), number(busiest["request_throughput"])
    return f"{tokens} output tokens/s, {requests} requests/s, with {busiest['concurrency']} users"

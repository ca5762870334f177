"""Certifies the measuring client on this machine, using a server that logs what it actually sent.

`sweep selfcheck` uses the highest load of a plan, or a load of your choice. The server is the simulated backend, on the
engine's cores; the client runs on the same cores as in a trial. Its measurements are compared with the log request by
request.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backends.simulated_server.truth import Truth, read_log
from sweep.base.config import ROOT
from sweep.base.options import ConfigPath
from sweep.base.records import Request
from sweep.client.measurement import Measurement, measure
from sweep.client.modes import ClosedLoop
from sweep.client.wire import Target
from sweep.node.verdict import limited
from sweep.numbers.quantile import quantile

TTFT = 0.05  # s
LASTS = 5.0  # approximate s for which the check sends requests
EXACT = 1.0  # ms; smaller errors (p99) are considered exact


class Certificate(NamedTuple):
    """Errors of the client's measurements in seconds, and whether the client was the bottleneck."""

    streams: int
    tokens_per_second: float
    ttft_error_p99: float
    itl_error_p99: float
    limited: str | None
    measurement: Measurement


def check(streams: int, itl: float, *, processes: int | Literal["auto"] = "auto") -> Certificate:
    """Send requests from `streams` users to the reference server for a few seconds."""
    server_cpus, client_cpus = _cores()
    tokens = max(8, min(256, int(1.0 / itl) if itl else 256))
    count = streams * max(1, round(LASTS / (TTFT + itl * tokens)))
    requests = [Request(f"check-{i}", "word " * 64, tokens) for i in range(count)]
    mode = ClosedLoop(streams)
    with tempfile.TemporaryDirectory(prefix="sweep-check-") as name:
        folder = Path(name)
        with _serving(itl, folder / "log", server_cpus) as url:
            target = Target(url, "simulated", ignore_eos=True)
            result = measure(target, [], requests, mode, folder=folder / "job", cpus=client_cpus, processes=processes)
        ttft, gaps = _errors(result, read_log(folder / "log"))
    ends = [record.sent + record.chunk_us[-1] / 1e6 for record in result.records if record.error is None]
    speed = sum(result.records.output_tokens) / (max(ends) - min(result.records.sent))
    return Certificate(
        streams, speed, quantile(ttft, 0.99), quantile(gaps, 0.99), limited(result.report, result.records), result
    )


def describe(finding: Certificate) -> str:
    """Return the finding as text, with a remedy if one is needed."""
    report = finding.measurement.report
    ttft, itl = finding.ttft_error_p99 * 1e3, finding.itl_error_p99 * 1e3
    figures = (
        f"{finding.streams} streams, {finding.tokens_per_second:,.0f} tokens/s: TTFT off by {ttft:.3f} ms (p99), "
        f"ITL by {itl:.3f} ms (p99); {report.stamp_source} stamps, {report.processes} client process(es), "
        f"{report.cpu:.0%} of a core, loop lag {report.loop_lag_p99 * 1e3:.1f} ms (p99)"
    )
    if finding.limited:
        return f"{figures}\nnot certified: {finding.limited}"
    if max(ttft, itl) > EXACT:
        return (
            f"{figures}\ncertified to {max(ttft, itl):.1f} ms only: other work on the client's core delays its "
            "timestamps"
        )
    return f"{figures}\ncertified: at this load, the client's measurements match the server's log"


def plan_load(overrides: Sequence[str], options: ConfigPath) -> int:
    """Return the largest number of requests in flight at once in any trial of this plan."""
    from sweep.drive.preflight import fetch_obstacle, find_hardware
    from sweep.plan.compose import compose_run
    from sweep.plan.planning import Surroundings, make_plan

    # The load does not depend on whether an engine is installed or can run here.
    anywhere = Surroundings(lambda backend, platform: "", lambda backend, platform: None)
    composition = compose_run(overrides, functools.partial(find_hardware, options=options), options, fetch_obstacle)
    streams = 1
    for deployment in make_plan(composition, anywhere).deployments:
        for trial in deployment.trials:
            limit = trial.mode().most_in_flight()
            streams = max(streams, min(limit or trial.num_requests, trial.num_requests))
    return streams


def _cores() -> tuple[set[int], set[int]]:
    """Return the server's and the client's cores; the client gets the last core, as in a trial."""
    cores = sorted(os.sched_getaffinity(0))
    return (set(cores[:-1]), {cores[-1]}) if len(cores) > 1 else (set(cores), set(cores))


@contextlib.contextmanager
def _serving(itl: float, log: Path, cpus: set[int]) -> Iterator[str]:
    config: dict[str, Any] = {"ttft": {"mean": TTFT}, "itl": {"mean": itl}, "log": str(log)}
    command = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    os.sched_setaffinity(process.pid, cpus)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().rsplit(':', 1)[1].strip()}"
    finally:
        process.terminate()
        process.wait()


def _errors(result: Measurement, truths: dict[tuple[str, int], Truth]) -> tuple[list[float], list[float]]:
    """Return the absolute errors of every TTFT (from sending) and of every gap between tokens, in seconds."""
    ttft, gaps = [], []
    for record in result.records:
        if record.error is None:
            truth = truths[record.request_id, 0]
            ttft.append(abs(record.chunk_us[0] / 1e6 - (truth.writes[0] - truth.arrival) / 1e9))
            both = zip(pairwise(record.chunk_us), pairwise(truth.writes), strict=False)
            gaps += [abs((b - a) / 1e6 - (d - c) / 1e9) for (a, b), (c, d) in both]
    if not ttft:
        raise RuntimeError(f"no request succeeded: {result.records.error[0]}")
    return ttft, gaps

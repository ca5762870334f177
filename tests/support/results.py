"""Small made-up runs for the tests of the analysis, what is shown of them, and the rows of any run's ledger."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.load import Run, open_run
from analysis.report.html import html
from analysis.report.terminal import everything
from analysis.results import RunResults
from analysis.warnings import grouped, scope
from sweep.disk import run_files
from sweep.disk.ledger import ledger_entries
from sweep.disk.run_files import RunPaths


def trial(backend: str, batch: int, replicate: int, throughput: float | None, **other: Any) -> dict[str, Any]:
    return {
        "trial_id": f"{backend}-{batch}-{replicate}-{len(other)}",
        "deployment_id": backend,
        "backend": backend,
        "model": "m",
        "workload": "qa",
        "load": "batch",
        "batch_size": batch,
        "load.batch_size": batch,
        "replicate": replicate,
        "outcome": "ok" if throughput else "hung",
        "reason": None if throughput else "not done in time",
        "output_throughput": throughput,
        "num_requests": 100,
        "num_failed": 0,
        "client_offered": 100,
        "client_sent": 100,
        **other,
    }


def run_of(folder: Path, rows: list[dict[str, Any]], **experiment: Any) -> Run:
    paths = RunPaths(folder)
    run_files.write_trials(paths, rows)
    axes = sorted({name for row in rows for name in row if "." in name or name == "ladder"})
    run_files.write_plan(paths, [{"kind": "experiment", "name": "x", "axes": axes, **experiment}])
    return open_run(folder)


def committed_rows(ledger: Path) -> list[dict[str, Any]]:
    """Return every row that was ever committed to a ledger; none if the file is missing yet."""
    lines = ledger.read_bytes().splitlines(keepends=True) if ledger.exists() else []
    return [entry["row"] for entry in ledger_entries(lines) if entry["event"] == "trial"]


def printed(run: Run, width: int) -> str:
    """What `sweep summary --all` prints, checked to fit."""
    console = Console(width=width)
    with console.capture() as output:
        console.print(*everything(RunResults(run)), sep="\n")
    assert max(map(len, output.get().splitlines())) <= width
    assert "…" not in output.get()
    return output.get()


def warnings_of(run: Run) -> dict[str, str]:
    """Code -> message and scope of each kind of warning about a run."""
    results = RunResults(run)
    return {w.code: f"{w.message} [{scope(w, results.layout)}]" for w in grouped(results.warnings)}


def report_of(run: Run) -> str:
    return html(RunResults(run), [])


def rows_of(document: str) -> list[list[str]]:
    """The text of the cells of every row in the tables of a report, without the marks of warnings."""
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", re.sub(r"<a .*?</a>", "", document), re.DOTALL):
        cells = re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)
        rows.append([unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in cells])
    return rows


def claim_record(lower: float, upper: float, configuration: str = "vllm m", **other: Any) -> dict[str, Any]:
    """A claim of a search for a capacity, as in capacity.json."""
    shares = [{"load": load, "good": {"ttft.p90 <= 0.2 s": good}} for load, good in ((4.0, 1.0), (8.0, 0.8))]
    return {
        "status": "interval",
        "lower": lower,
        "upper": upper,
        "limit": "ttft.p90 <= 0.2 s",
        "probes": 9,
        "seconds": 60.0,
        "ended": "",
        "unit": "requests/s",
        "configuration": configuration,
        "task": "qa poisson",
        "lines": [f"capacity: between {lower:g} and {upper:g} requests/s", "limit:    TTFT", "how sure: so"],
        "asked": {"model": "m", "workload": {"name": "qa", "input_tokens": 9}, "load": {"name": "poisson"}},
        "slo": {"ttft": "0.2s"},
        "bounds": {"ttft.p90 <= 0.2 s": 0.9},
        "measured": shares,
        "twin": shares,
        "cost_per_million_tokens": [2.0, 1.0],
        **other,
    }


def claims_in(folder: Path, *records: dict[str, Any]) -> None:
    """Write the claims of a run that has searched."""
    claims = {f"{record['configuration']} {record['task']} {record.get('replicate', 0)}": record for record in records}
    RunPaths(folder).claims.write_text(json.dumps(claims))


def question_in(folder: Path) -> None:
    """Write the answer to the question of a run that has asked."""
    asked = {"best": "vllm qa", "value": "9 tokens/s", "within": 0.05, "sure": 0.95, "launch_noise": 0.01}
    asked |= {"launches": 5, "launches_of_grid": 9, "lines": ["best: vllm qa"], "measured": {"vllm qa": 9.0}}
    asked |= {"predicted": {}, "dropped": {"tgi qa": "failed: oom_load"}}
    RunPaths(folder).asked.write_text(json.dumps({"best x": asked}))

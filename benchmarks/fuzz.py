"""Runs random command lines and experiment files through the command's entry function, and as processes.

    python -m benchmarks.fuzz [--seed 1] [--first 0] [--count 2500] [--processes 0] [--results FILE]
    python -m benchmarks.fuzz --write docs/measurements/fuzz.md --results FILE...

A slice appends a line for each case to its results; `--write` makes the table from them. The cases, and what the
documentation says about them, are in tests/support/fuzz.py. No case may use more than 6 GiB.
"""

import argparse
import importlib
import json
import pkgutil
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import analysis
from benchmarks.documents import markdown_table
from sweep.__main__ import main as sweep
from sweep.base.config import ROOT
from tests.support.fuzz import HANG, Case, Finding, cases, check, command_line, complete, experiment, judge

MEMORY = 6 << 30  # maximum bytes of memory
HEADER = """# Random input

Made by `python -m benchmarks.fuzz` (seed {seed}): random command lines and experiment files through the command's entry
function in one process, with `dry_run=true`, and some of both as separate processes. tests/support/fuzz.py judges
each; it is written from the documentation, not from the code that checks. *Nonsense* was accepted although
the documentation refuses it; *refused wrongly* is the reverse. *Untidy* is an error that takes more than one line,
names no key, or echoes more than 80 characters of a value.

"""
HEADINGS = f"n | accepted | refused | traceback | over {HANG} s | nonsense | refused wrongly | untidy | slowest, s"


def in_process(case: Case, folder: Path) -> Finding:
    """Run a case as a separate process and judge it."""
    arguments, begin = complete(case, folder), time.monotonic()
    command = [sys.executable, "-m", "sweep", *arguments]
    status, output, error, problem = None, "", "", None
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * HANG, errors="replace")
        status, output, error = ended.returncode, ended.stdout, ended.stderr
        problem = judge(case, arguments, status, output, error)
    except subprocess.TimeoutExpired:
        problem = "still running"
    seconds = time.monotonic() - begin
    if problem is None and seconds > HANG:
        problem = f"still running after {HANG} s"
    named = case._replace(kind=f"{case.kind.partition(':')[0] if case.file else 'command line'} as a process")
    return Finding(named, status, problem, error, seconds)


def entries(findings: Iterator[Finding]) -> Iterator[dict[str, Any]]:
    for finding in findings:
        case = finding.case
        details = {"arguments": case.arguments, "file": case.file, "error": finding.error[:600]}
        outcome = {"kind": case.kind, "status": finding.status, "problem": finding.problem, "seconds": finding.seconds}
        yield outcome | (details if finding.problem or finding.seconds > 2 else {})


def table(rows: Sequence[dict[str, Any]], seed: int) -> str:
    """Return the outcomes by kind of case, as Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    for row in rows:
        for kind in (row["kind"], "all"):
            counts[kind].update(["n", _column(row)])
            slowest[kind] = max(slowest[kind], row["seconds"])
    columns = ("n", "accepted", "refused", "traceback", "hang", "nonsense", "wrongly", "untidy")
    kinds = [*sorted(kind for kind in counts if kind != "all"), "all"]
    cells = ([kind, *(counts[kind][column] for column in columns), f"{slowest[kind]:.1f}"] for kind in kinds)
    return "\n".join([HEADER.format(seed=seed), *markdown_table(f"cases | {HEADINGS}", cells), ""])


def _column(row: dict[str, Any]) -> str:
    problem = row["problem"]
    if problem is None:
        return "accepted" if row["status"] == 0 else "refused"
    if problem.startswith("still running"):
        return "hang"
    if problem.startswith(("accepted", "not a plan")):
        return "nonsense"
    if problem.startswith("refused"):
        return "wrongly"
    return "untidy" if row["status"] == 2 else "traceback"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2500, help="of command lines, and of experiment files")
    parser.add_argument("--processes", action="store_true", help="each case in a separate process")
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_args()
    if chosen.write:
        rows = [json.loads(line) for path in chosen.results for line in path.read_text().splitlines()]
        chosen.write.write_text(table(rows, chosen.seed))
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run = in_process if chosen.processes else check
    last = chosen.first + chosen.count
    pairs = zip(
        *(islice(cases(chosen.seed, make), chosen.first, last) for make in (command_line, experiment)), strict=True
    )
    # Imports do not count as a case's time. An alarm during an import would leave half a module to the next cases.
    importlib.import_module("matplotlib.pyplot")
    for _, name, _ in pkgutil.walk_packages(analysis.__path__, "analysis."):
        importlib.import_module(name)
    sweep(["backend=simulated", "cluster=inline", "dry_run=true"])
    with tempfile.TemporaryDirectory() as name, chosen.results[0].open("a") as results:
        findings = (run(case, Path(name)) for case in chain.from_iterable(pairs))
        for entry in entries(findings):
            results.write(json.dumps(entry) + "\n")
            results.flush()


if __name__ == "__main__":
    main()

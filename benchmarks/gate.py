"""Measures how often `sweep compare --fail-if` fails a build, by pairs of runs of launched simulated engines.

    python -m benchmarks.gate measure FOLDER [--first 0] [--last 40]
    python -m benchmarks.gate tables FOLDER [FOLDER ...]

Launches of an engine differ by SPREAD (`backend.launch_spread`). A pair has two runs of the same engine, and one of an
engine that is slower by LOSS; each run has LAUNCHES launches. `sweep run` measures every run and `sweep compare` judges
them, as whole commands. In every SINGLE-th pair, runs of one launch are compared too, about which the command can say
nothing. A pair that FOLDER has is not measured again, so the same command continues. `tables` writes
docs/measurements/gate_pairs.csv and the tables of compare.md. An engine waits most of the time, so several measuring
commands may share a machine, each in a network namespace of its own.
"""

import argparse
import contextlib
import io
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.load import load
from benchmarks.documents import markdown_table, publish
from benchmarks.paired_launches import read_rows, write_rows
from sweep.__main__ import main as sweep
from sweep.base import code_version

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "compare.md"
ROWS = DOCUMENT.with_name("gate_pairs.csv")
MARKS = ("<!-- tables: python -m benchmarks.gate -->", "<!-- end of the gate's tables -->")
SPREAD, LOSS, LAUNCHES, SINGLE = 0.02, 0.08, 3, 4
TTFT, ITL, TOKENS, USERS = 0.4, 0.08, 24, 8  # s; so long that a busy machine changes a launch's speed by little
CONDITION = "output_throughput < -3%"
ENGINE = (
    f"backend=simulated backend.launch_spread={SPREAD} model=tiny-llama workload=synthetic workload.input_tokens=16"
    f" workload.output_tokens={TOKENS} workload.num_requests={USERS} workload.warmup_requests=0 load=closed"
    f" load.concurrency={USERS} load.stagger=0 relaunch=per_replicate cluster=inline tracking=none report=false"
)
ALIKE, SLOWER, ONE_LAUNCH = "A/A", f"{LOSS:.0%} slower", "A/A, one launch each"


@dataclass(frozen=True)
class GateRow:
    """One comparison of two runs. Its fields are the columns of the CSV."""

    pair: int
    comparison: str
    status: int  # exit status of `sweep compare --fail-if`
    ratio: float  # other / reference; NaN if the command could not tell
    reference: str  # output throughput of each launch, tokens/s
    other: str


def measured_run(folder: Path, launches: int, slower: bool) -> str:
    """Measure a run with the whole command, unless it exists; return its folder."""
    factor = 1 / (1 - LOSS) if slower else 1.0
    timing = f"backend.ttft.mean={TTFT * factor:.6f} backend.itl.mean={ITL * factor:.6f} replicates={launches}"
    status, printed = _printed("run", *ENGINE.split(), *timing.split(), f"out={folder}")
    if status not in (0, 1):
        raise SystemExit(printed)
    return str(folder)


def compared(pair: int, comparison: str, reference: str, other: str) -> GateRow:
    """Compare two runs with the whole command."""
    status, printed = _printed("compare", reference, other, "--fail-if", CONDITION, "--format", "json")
    ratios = [each["ratio"] for each in json.loads(printed)["comparisons"] if each["column"] == "output_throughput"]
    ratio = float("nan") if not ratios or ratios[0] is None else float(ratios[0])
    return GateRow(pair, comparison, status, ratio, *map(_throughputs, (reference, other)))


def _throughputs(folder: str) -> str:
    trials = load(folder)
    return " ".join(f"{each:.6g}" for each in trials.loc[trials["outcome"] == "ok", "output_throughput"])


def _printed(*arguments: str) -> tuple[int, str]:
    """Return a command's exit status, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = sweep(list(arguments))
    return status, printed.getvalue()


def measure_pair(folder: Path, pair: int) -> Iterator[GateRow]:
    """Measure the runs of a pair in random order; yield its comparisons."""
    sides = {"reference": False, "again": False, "slower": True}
    order = random.Random(pair).sample(sorted(sides), len(sides))
    runs = {name: measured_run(folder / name, LAUNCHES, sides[name]) for name in order}
    yield compared(pair, ALIKE, runs["reference"], runs["again"])
    yield compared(pair, SLOWER, runs["reference"], runs["slower"])
    if pair % SINGLE == 0:
        single = [measured_run(folder / name, 1, slower=False) for name in ("one", "another")]
        yield compared(pair, ONE_LAUNCH, *single)


def tables(rows: Sequence[GateRow]) -> list[str]:
    """Return the table of the document, and the text above it."""
    sides = {text for row in rows if row.comparison != ONE_LAUNCH for text in (row.reference, row.other)}
    squares = [np.log(np.array(text.split(), float)).var(ddof=1) for text in sorted(sides) if " " in text]
    table = []
    for name, expected in ((ALIKE, "status 1 in 5% at most"), (SLOWER, "status 1 in 90%"), (ONE_LAUNCH, "status 3")):
        of_kind = [row for row in rows if row.comparison == name]
        counts = [sum(row.status == status for row in of_kind) for status in (0, 1, 3)]
        known = [row.ratio for row in of_kind if not math.isnan(row.ratio)]
        table.append([name, len(of_kind), *counts, f"{statistics.median(known):.3f}" if known else "–", expected])
    return [
        f"{len({row.pair for row in rows})} pairs, {sum(len(text.split()) for text in sides)} launches in runs of"
        f" {LAUNCHES}; launches of a run differ by {np.sqrt(np.mean(squares)):.1%} (planted: {SPREAD:.0%}). Judged at"
        f" commit {(code_version.commit() or 'unknown')[:12]}.",
        "",
        *markdown_table("comparison | pairs | status 0 | status 1 | status 3 | median ratio | expected", table),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "tables"])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--first", type=int, default=0, help="the first pair")
    parser.add_argument("--last", type=int, default=40, help="the pair after the last one")
    options = parser.parse_args()
    if options.action == "tables":
        files = [path for folder in options.folders for path in folder.glob("pair*.csv")]
        rows: list[GateRow] = [row for path in files for row in read_rows(path, GateRow)]
        rows.sort(key=lambda row: (row.pair, row.comparison))
        write_rows(rows, ROWS)
        publish(["", *tables(rows), ""], DOCUMENT, MARKS)
        return
    (folder,) = options.folders
    for pair in range(options.first, options.last):
        path = folder / f"pair{pair}.csv"
        if not path.exists():
            measured = list(measure_pair(folder / str(pair), pair))
            write_rows(measured, path)
            print(f"pair {pair}: " + ", ".join(f"{row.comparison} {row.status}" for row in measured), flush=True)


if __name__ == "__main__":
    main()

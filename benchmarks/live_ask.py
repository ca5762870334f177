"""Asks a real llama.cpp for the best of 40 points, and measures the whole grid beside it. Needs an idle machine.

    python -m benchmarks.live_ask FOLDER [KEY=VALUE ...]

The grid has 20 configurations (threads, batch, ubatch, type of the KV cache, flash attention) at two loads. FOLDER gets
three runs: `grid` with three replicates, `asked` with the same grid as a question, and `killed`, the question again. It
is killed (SIGKILL) when it has half of the rows of `asked`, and continued by the same command. `KEY=VALUE` changes all
runs, e.g. `workload.num_requests=4` for a trial. A run that is finished is not measured again. Prints a table, and one
JSON object: the seconds of each run, and for each answer its mean in the grid against that of the grid's best point.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.documents import markdown_table, publish
from sweep.base.config import ROOT
from sweep.disk.run_files import RunPaths, plan_entries, read_questions, read_trials

QUANTITY = "output_throughput"
FLAGS = {
    "threads": "1,2",
    "batch-size": "512,2048",
    "ubatch-size": "64,512",
    "cache-type-k": "f16,q8_0",
    "flash-attn": "'on','off'",
}
GRID = (
    *("backend=llamacpp", "model=small-llama", "hardware=cpu", "cluster=inline", "tracking=none", "agreement=false"),
    *("workload=synthetic", "workload.num_requests=24", "workload.input_tokens=256", "workload.output_tokens=32"),
    *("load=closed", "load.concurrency=2,8", "relaunch=per_replicate"),
    *(f"backend.flags.{name}={settings}" for name, settings in FLAGS.items()),
    # a small batch only with the usual cache and a small ubatch: 20 configurations
    "exclude=[{backend.flags.batch-size: 512, backend.flags.cache-type-k: q8_0},"
    " {backend.flags.batch-size: 512, backend.flags.ubatch-size: 512}]",
)
CHECKS = 0.2  # s between two looks at the rows of a run that is to be killed


def begin(folder: Path, *keys: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sweep", "run", *GRID, f"out={folder}", *keys]
    return subprocess.Popen(command, cwd=ROOT)


def seconds_of(folder: Path, *keys: str, most_rows: float = math.inf) -> float:
    """Return the seconds of a run, which are kept in its folder. With `most_rows` it is killed once, after so many."""
    kept = folder / "seconds.json"
    if kept.exists():
        return float(json.loads(kept.read_text()))
    began = time.monotonic()
    if most_rows < math.inf:
        with begin(folder, *keys) as process:
            while process.poll() is None and rows_so_far(folder) < most_rows:
                time.sleep(CHECKS)
            process.kill()
    with begin(folder, *keys) as process:
        status = process.wait()
    if status not in (0, 1):
        raise SystemExit(f"{folder}: the run ended with status {status}")
    seconds = time.monotonic() - began
    kept.write_text(json.dumps(seconds))
    return seconds


def rows_so_far(folder: Path) -> int:
    ledger = RunPaths(folder).ledger
    return ledger.read_bytes().count(b'"trial_id"') if ledger.exists() else 0


def measured(folder: Path) -> dict[str, list[float]]:
    """Return the values of each point, by the name that it has in an answer."""
    names, deployments = {}, {}
    for entry in plan_entries(RunPaths(folder).plan):
        if entry["kind"] == "deployment":
            deployments[entry["deployment_id"]] = entry["label"]
        elif entry["kind"] == "trial":
            point = entry["label"].removesuffix(f" replicate {entry['replicate']}")
            names[entry["trial_id"]] = f"{deployments[entry['deployment_id']]} {point}"
    values = defaultdict(list)
    for row in read_trials(RunPaths(folder).trials):
        if row["outcome"] == "ok":
            values[names[row["trial_id"]]].append(row[QUANTITY])
    return values


def ratio_to_best(grid: dict[str, list[float]], answer: str) -> tuple[float, float, float]:
    """Return an answer's mean in the grid over that of the grid's best point, with its 95% interval (Welch, of ln)."""
    best = max(grid, key=lambda name: float(np.mean(grid[name])))
    if answer == best:
        return 1.0, 1.0, 1.0
    logs = np.log(grid[answer]), np.log(grid[best])
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval()
    low, high = np.exp([interval.low, interval.high])
    return float(np.exp(logs[0].mean() - logs[1].mean())), float(low), float(high)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("keys", nargs="*")
    chosen = parser.parse_args(arguments)
    folder, question = chosen.folder.resolve(), f"ask.best={QUANTITY}"
    seconds = {"grid": seconds_of(folder / "grid", "replicates=3", *chosen.keys)}
    seconds["asked"] = seconds_of(folder / "asked", question, *chosen.keys)
    half = len(read_trials(RunPaths(folder / "asked").trials)) / 2
    seconds["killed"] = seconds_of(folder / "killed", question, *chosen.keys, most_rows=half)
    grid, rows, found = measured(folder / "grid"), [], dict[str, Any]()
    for run in ("asked", "killed"):
        (answer,) = read_questions(RunPaths(folder / run)).values()
        ratio, low, high = ratio_to_best(grid, answer["best"])
        share = seconds[run] / seconds["grid"]
        found[run] = {"best": answer["best"], "ratio": ratio, "low": low, "high": high, "share_of_time": share}
        sure = f"{answer['probability']:.0%}, {answer['launch_noise'] or math.nan:.1%}"
        cells = [run, answer["best"], f"{ratio:.3f} ({low:.3f} to {high:.3f})", str(answer["launches"])]
        rows.append([*cells, f"{seconds[run]:.0f} s", f"{share:.0%}", sure])
    publish(
        markdown_table(
            "run | answer | its mean over the best's, in the grid | launches | time | of the grid's | sure, noise",
            rows,
        )
    )
    print(json.dumps({"seconds": seconds, "points": len(grid), "answers": found}))


if __name__ == "__main__":
    main(sys.argv[1:])

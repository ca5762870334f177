"""Races over configurations that were measured on GPUs, through the whole command: the table is replayed.

    python -m benchmarks.silicon silicon_sample.csv [--families 35] [--spread 0.02]

`silicon_sample.csv` is a part of the wheel aiconfigurator-core 0.12.0 (aiconfigurator_core/systems), which is not
shipped here. A family is a model on one GPU type with its lengths. Its rows are written as a CSV of five replicates,
whose launches differ by `--spread`, since each row was measured once. Then `sweep run race=true cluster.replay=CSV`
runs a plan of its configurations at all users that each of them has. The last line of the output is JSON.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.documents import markdown_table, publish
from sweep.__main__ import main as sweep
from sweep.disk.run_files import RunPaths, read_trials

FAMILY = ("model_path", "system", "isl", "osl")
CONFIGURATION = (
    *("backend", "backend_version", "precision", "tp_size", "attention_dp_size"),
    *("moe_tp_size", "moe_ep_size", "gemm_quant_mode", "moe_quant_mode"),
)
AXIS = "backend.fault_seed"  # of the simulated engine, which does not run: the number of a configuration
REPLICATES, LAUNCH, TRIAL = 5, 90, 30  # launches and trials take so many seconds

Speeds = Mapping[tuple[int, int], float]  # by configuration and users: output tokens/s of a GPU


class Raced(NamedTuple):
    """A family's race."""

    family: str
    configurations: int
    points: int
    trials: float  # that ran, as a share of the grid's
    right: float  # share of the loads whose best configuration was not dropped before another
    hours: float  # of the GPU, as a share of the grid's


class Family(NamedTuple):
    """What was measured of a model on one GPU type with its lengths."""

    configurations: list[tuple[str, ...]]  # their values of CONFIGURATION
    points: Mapping[tuple[int, int], tuple[float, float]]  # by configuration and users: tokens/s of a GPU, and TPOT, s


def families(path: Path) -> dict[str, Speeds]:
    """Return the speeds of each family."""
    return {name: {key: speed for key, (speed, _) in each.points.items()} for name, each in read_families(path).items()}


def read_families(path: Path) -> dict[str, Family]:
    """Return the families with at least three configurations and 25 to 90 points, without rows of mostly queueing."""
    found: dict[str, dict[tuple[str, ...], dict[int, list[tuple[float, float]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in csv.DictReader(path.open()):
        tpot, ttft = (float(row[f"silicon_{name}_ms"] or 0) / 1000 for name in ("tpot", "ttft"))
        if row["mode"] != "agg" or not row["batch_size"] or not tpot or not ttft or row["tp_size"] in ("", "0"):
            continue
        users, length = int(float(row["batch_size"])), int(row["osl"])
        if ttft <= tpot * length:
            speed = users * length / (ttft + tpot * (length - 1)) / float(row["tp_size"])
            name = " ".join(row[key] for key in FAMILY)
            found[name][tuple(row[key] for key in CONFIGURATION)][users].append((speed, tpot))
    numbered = {}
    for name, configurations in sorted(found.items()):
        points = {
            (number, users): (statistics.median(speeds), statistics.median(tpots))
            for number, key in enumerate(sorted(configurations))
            for users, measured in configurations[key].items()
            for speeds, tpots in [zip(*measured, strict=True)]
        }
        if len(configurations) >= 3 and 25 <= len(points) <= 90:
            numbered[name] = Family(sorted(configurations), points)
    return numbered


def run(name: str, speeds: Speeds, spread: float, folder: Path) -> Raced:
    """Replay a family's race, and compare what it dropped with the table."""
    noise = np.random.default_rng(sum(map(ord, name)))
    table, out = folder / "table.csv", folder / "out"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([AXIS, "concurrency", "replicate", "output_throughput", "startup_seconds", "wall_seconds"])
        configurations = sorted({configuration for configuration, _ in speeds})
        for configuration, replicate in [(c, r) for c in configurations for r in range(REPLICATES)]:
            luck = noise.lognormal(0, spread)  # of all trials of a launch
            for (at, users), speed in speeds.items():
                if at == configuration:
                    writer.writerow([configuration, users, replicate, speed * luck, LAUNCH, TRIAL])
    loads = sorted({users for _, users in speeds})
    grid = [f"{AXIS}={','.join(map(str, configurations))}", f"load.concurrency={','.join(map(str, loads))}"]
    missing = [f"{{{AXIS}: {c}, load.concurrency: {u}}}" for c in configurations for u in loads if (c, u) not in speeds]
    grid += [f"exclude=[{', '.join(missing)}]"] if missing else []
    cluster = [f"cluster.replay={table}", "cluster.simulate={nodes: 1, gpus: 0}", "hardware=cpu"]
    arguments = ["backend=simulated", "model=tiny-llama", "load=closed", "tracking=none", "report=false", f"out={out}"]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        status = sweep([*arguments, *grid, *cluster, f"replicates={REPLICATES}", "race=true"])
    if status:
        raise SystemExit(f"{name}: status {status}")
    rows = read_trials(RunPaths(out).trials)
    ran = [row for row in rows if row["outcome"] == "ok"]
    counts = Counter((row[AXIS], row["concurrency"]) for row in ran)
    best = [max((c for c in configurations if (c, u) in speeds), key=lambda c: speeds[c, u]) for u in loads]
    longest = [max(counts[c, u] for c in configurations) for u in loads]
    wrong = sum(counts[c, u] < most for c, u, most in zip(best, loads, longest, strict=True))
    launches = len({row["launch"] for row in ran})
    hours = (launches * LAUNCH + len(ran) * TRIAL) / (REPLICATES * len(configurations) * LAUNCH + len(rows) * TRIAL)
    return Raced(name, len(configurations), len(speeds), len(ran) / len(rows), 1 - wrong / len(loads), hours)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--families", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.02)
    chosen = parser.parse_args(arguments)
    began, raced = time.process_time(), list[Raced]()
    for name, speeds in list(families(chosen.table).items())[: chosen.families]:
        with tempfile.TemporaryDirectory() as folder:
            raced.append(run(name, speeds, chosen.spread, Path(folder)))
    rows = [[*each[:3], *(f"{share:.0%}" for share in each[3:])] for each in raced]
    headings = "family | configurations | points | trials of the grid | best not dropped | GPU time of the grid"
    publish(markdown_table(headings, rows))
    medians = {name: statistics.median(getattr(each, name) for each in raced) for name in ("trials", "hours")}
    right = statistics.mean(each.right for each in raced)
    print(json.dumps({"families": len(raced), **medians, "right": right, "cpu_seconds": time.process_time() - began}))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run the soak by seed and print a table: scripts/soak.py [--seeds 1,2,3] [--trials 520] > docs/measurements/soak.md

It needs root. A seed measured in --folder is not measured again. If the time was too short for a seed, its row says so,
and the next run starts it from the beginning. Keep the page's section on nights, which another script writes.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.table import text_table
from sweep.base import code_version
from sweep.base.config import cache_directory
from tests.cluster.soak import LEFT_WITHIN, TRIALS_OF_LAUNCH, soak
from tests.cluster.storm import FAULTS
from tests.cluster.surroundings import FACTOR

HEAD = """\
# Soak

One sweep of short trials on the simulated engine, with real clocks and launches of {launch} trials of one request each.
Its Ray has nodes in network namespaces of one machine. Each node has an address, a small ext4 disk for its caches and a
wall clock of its own. A jump of that clock reaches the interpreter of each Python program, but neither the C++ below
Ray nor the client's stamps. Every second node does not see the results. Faults strike at random, drawn from the list
below by the seed. A node that dies comes back with an empty disk. The same command is issued again until every trial is
measured. Heartbeats, time-outs and back-offs are a quarter as long
(`SWEEP_TIME_FACTOR={factor:g}`: a silent node is given up after {patience:g} s), and so is the night. Recovery is
tested, not timing, so a trial whose client was too slow on the busy machine (`client_limited`) counts as measured.
The hub is down for up to {outage:g} s at a time.

Made by `scripts/soak.py`{commit}. `ok`: trials whose one row is good; `client`: those that are `client_limited`.
`doubled`: trials with two good rows. `leaked`: engines, their children and supervisors, and measuring clients that were
left {left:g} s after the end. `every`: mean seconds between faults. `attempts lost`: launches that a fault ended and
that ran again elsewhere. `best`: how long the best schedule in hindsight takes, which knows how long each launch will
run and when nodes are away. `idle`: the share of the nodes' time that brought no row (recovery, lost launches, waits,
the restarts of the driver, its report). `best idle`: the same of that schedule.
`driver`: its resident memory at a quarter and at the end of its longest command, and the rows between."""
COLUMNS = (
    *("seed", "nodes", "trials", "ok", "client", "lost", "doubled", "leaked", "faults", "every", "commands"),
    *("attempts lost", "time", "best", "idle", "best idle", "driver"),
)


def line(end: dict[str, Any]) -> list[object]:
    memory = end["memory"]
    driver = f"{memory[0]:.0f} → {memory[1]:.0f} MiB, {memory[2]:.0f} rows" if memory else "too short"
    client = end["client_limited"]
    lost = end["lost"] if end["complete"] else "not known"
    trials = f"{end['trials']}" if end["complete"] else f"{end['measured']} of {end['trials']}: the time was over"
    return [
        *(end["seed"], end["nodes"], trials, end["measured"] - client, client, lost, end["doubled"]),
        *(len(end["leaked"]), sum(end["faults"].values()), f"{end['every']:g} s", end["commands"]),
        *(end["lost_attempts"], f"{end['seconds']:.0f} s", f"{end['best_seconds']:.0f} s"),
        *(f"{end['idle']:.0%}", f"{end['best_idle']:.0%}", driver),
    ]


def table(ends: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the document about all seeds so far."""
    commits = sorted({end["commit"] for end in ends if end["commit"]})
    head = HEAD.format(
        launch=TRIALS_OF_LAUNCH,
        factor=FACTOR,
        patience=40 * FACTOR,
        outage=arguments.outage,
        left=LEFT_WITHIN,
        commit=f" at {', '.join(commits)}" if commits else "",
    )
    measured = sum(end["measured"] for end in ends)
    total = f"{measured} trials over {len(ends)} seeds: {sum(end['lost'] for end in ends)} lost, "
    total += f"{sum(end['doubled'] for end in ends)} doubled, {sum(len(end['leaked']) for end in ends)} leaked, "
    total += f"{sum(end['tracebacks'] for end in ends)} commands that ended with a traceback."
    machines = sorted({end["machine"] for end in ends})
    struck = ([fault.name, sum(end["faults"].get(fault.name, 0) for end in ends)] for fault in FAULTS)
    storms = text_table(COLUMNS, map(line, ends)).markdown()
    parts = [head, "", *storms, "", total, "", f"Machine: {'. '.join(machines)}.", ""]
    return "\n".join([*parts, *text_table(["fault", "struck"], struck).markdown(), ""])


def measure(seed: int, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the end of a seed's storm. Its log stays in the folder, and its results only if something went wrong."""
    folder = arguments.folder / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    load = [os.getloadavg()[2]]
    with soak(folder, seed, arguments.nodes, arguments.trials, arguments.every, arguments.outage) as storm:
        end = storm.run(seconds, most_commands=1000)._asdict()
        rows = storm.on.sweep.committed()
        end["client_limited"] = sum({row["trial_id"]: row["outcome"] == "client_limited" for row in rows}.values())
        if end["lost"] or end["doubled"] or end["leaked"] or end["tracebacks"]:
            shutil.copytree(storm.on.sweep.out, folder / "out")
    load.append(os.getloadavg()[2])
    loads = f"load average over 15 min {load[0]:.0f} before and {load[1]:.0f} after seed {seed}"
    end["machine"] = f"{os.cpu_count()} cores, {loads}"
    end["every"] = arguments.every
    end["commit"] = (code_version.commit() or "")[:7]
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--trials", type=int, default=520, help="trials per seed, a multiple of 40")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--every", type=float, default=8.0, help="mean seconds between faults")
    parser.add_argument("--outage", type=float, default=120.0, help="longest outage of a hub, in seconds")
    parser.add_argument("--minutes", type=float, default=600.0, help="minutes after which no seed continues")
    parser.add_argument("--folder", type=Path, default=cache_directory(None) / "soak", help="logs and finished seeds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that nodes, networks and disks are removed
    until = time.monotonic() + 60 * arguments.minutes
    ends = []
    for seed in [int(seed) for seed in arguments.seeds.split(",")]:
        file = arguments.folder / f"seed-{seed}.json"
        end = json.loads(file.read_text()) if file.exists() else None
        seconds = until - time.monotonic()
        if (end is None or not end["complete"]) and seconds > 60:
            end = measure(seed, arguments, seconds)
            file.write_text(json.dumps(end))
            print(line(end), file=sys.stderr, flush=True)
        if end is not None:
            ends.append(end)
    print(table(ends, arguments), end="")


if __name__ == "__main__":
    main()

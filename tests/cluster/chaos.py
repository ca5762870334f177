"""One sweep on three nodes, with one of its processes killed every five seconds, chosen by a seed."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cluster.harness import RayCluster, Sweep, kill
from tests.support.waiting import wait_until

EVERY = 5.0  # s
COMMANDS = 20  # at most
# Five deployments of two points.
GRID = ("backend.itl.mean=0.01,0.011,0.012,0.013,0.014", "load.batch_size=1,2", "workload.output_tokens=16")
POINTS = 10


class Storm(NamedTuple):
    """The events of a storm, and the state afterwards."""

    seed: int
    commands: int
    killed: Counter[str]
    lost: int  # attempts that were lost with their node or worker
    failed: int  # rows with another outcome than ok, each measured again later
    seconds: float
    outcomes: Counter[str]  # of the rows in trials.parquet
    twice: int  # trials with more than one good row
    gone_after: float  # s from the end of the last command until no engine was left


def storm(seed: int, cluster: RayCluster, out: Path, cache: Path, engine: str, replicates: int) -> Storm:
    """Issue the command again and again, under fire, until every trial is ok; `engine` is backend.env.python=..."""
    chance, killed, begin = random.Random(seed), Counter[str](), time.monotonic()
    grid = (*GRID, f"replicates={replicates}")
    sweep = Sweep(out, "cluster=ray", f"cluster.address={cluster.address}", *grid, engine, cache=cache)
    status = -1
    while status != 0 and sweep.runs < COMMANDS:
        sweep.start()
        next_kill = time.monotonic() + EVERY
        while sweep.running():
            time.sleep(0.1)
            if time.monotonic() >= next_kill:
                next_kill += EVERY
                killed[_strike(chance, sweep, cluster)] += 1
                cluster.revive()
        status = sweep.wait()
        assert "Traceback" not in sweep.said(), sweep.said()
    seconds = time.monotonic() - begin
    gone_after = wait_until(lambda: not sweep.marked(), 30, "no engine is left")
    sweep.check_rows()
    rows = sweep.committed()
    good = Counter(row["trial_id"] for row in rows if row["outcome"] == "ok")
    ends = [entry["end"] for entry in sweep.ledger() if entry["event"] == "attempt_end"]
    return Storm(
        seed,
        sweep.runs,
        killed,
        sum(end not in ("done", "stopped") for end in ends),
        sum(row["outcome"] != "ok" for row in rows),
        seconds,
        sweep.outcomes(),
        sum(count > 1 for count in good.values()),
        gone_after,
    )


def _strike(chance: random.Random, sweep: Sweep, cluster: RayCluster) -> str:
    """Kill one process of a random kind, if there is one; return the kind."""
    kinds: dict[str, Callable[[], list[int]]] = {
        "engine": sweep.engines,
        "child": sweep.children,
        "client": sweep.clients,
        "worker": sweep.workers,
        "supervisor": sweep.supervisors,
        "raylet": lambda: [raylet.pid for node in cluster.nodes if (raylet := node.raylet())],
        "driver": lambda: [sweep.process.pid] if sweep.process else [],
    }
    kind = chance.choice(sorted(kinds))
    pids = kinds[kind]()
    if not pids:
        # Neither the driver nor a raylet instead: they always exist and would be hit repeatedly while nothing runs.
        present = {
            name: processes
            for name in sorted(kinds)
            if name not in ("driver", "raylet") and (processes := kinds[name]())
        }
        if not present:
            return "nothing"
        kind = chance.choice(list(present))
        pids = present[kind]
    numbers = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM] if kind == "driver" else [signal.SIGKILL]
    number = chance.choice(numbers)
    kill(chance.choice(sorted(pids)), number)
    return f"{kind} {number.name}" if kind == "driver" else kind

"""Run the chaos test with ten seeds (or those given) and print a table: scripts/chaos.py > docs/measurements/chaos.md

One sweep of 40 trials runs on 3 Ray nodes, and every five seconds one of its parts is killed at random.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.table import text_table
from sweep.base.config import cache_directory
from tests.cluster.chaos import COMMANDS, EVERY, POINTS, Storm, storm
from tests.cluster.harness import RayCluster, write_engine

REPLICATES = 4
TRIALS = POINTS * REPLICATES
HEAD = f"""\
# Chaos

One sweep of {TRIALS} trials (5 deployments on the simulated engine, which has a child that ignores SIGTERM) on a Ray
of 3 nodes on one host. Every {EVERY:.0f} s, one process is killed at random: an engine, its child, its supervisor,
the measuring client, the Ray worker, a raylet or the driver. A killed raylet's node comes back, as under Kubernetes.
The driver gets SIGKILL, SIGINT or SIGTERM. If the chosen kind has no process, another kind of the attempt is killed,
and nothing while no attempt runs. The same command is issued again until all trials are ok, at most {COMMANDS} times.

Made by `scripts/chaos.py`. `lost`: attempts that lost their node or worker. `again`: rows that were not ok, whose
trials were measured again. `ok`: trials with exactly one row, which is ok. `twice`: trials with two good rows. `gone`:
how long after the last command's end no engine process was left on the host (more than 30 s fails the seed).
"""
HEADINGS = ("seed", "commands", "killed", "lost", "again", "ok", "twice", "gone", "time")


def line(end: Storm) -> str:
    killed = ", ".join(f"{count} {kind}" for kind, count in sorted(end.killed.items()))
    ok = f"{end.outcomes['ok']} of {TRIALS}"
    struck = f"{sum(end.killed.values())}: {killed}"
    row = (end.seed, end.commands, struck, end.lost, end.failed, ok, end.twice, f"{end.gone_after:.1f} s")
    return text_table(HEADINGS, [(*row, f"{end.seconds:.0f} s")]).markdown()[-1]


def main(seeds: list[int]) -> None:
    print(HEAD, *text_table(HEADINGS, []).markdown(), sep="\n", flush=True)
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder, RayCluster() as cluster:
            cache = cache_directory(None)
            engine = write_engine(Path(folder) / "engine", sys.executable)
            print(line(storm(seed, cluster, Path(folder) / "out", cache, engine, REPLICATES)), flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(range(1, 11)))

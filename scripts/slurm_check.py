"""Runs the cases of tests/cluster/slurm_cases.py on a real Slurm and prints a table."""

import signal
import sys
import tempfile
from pathlib import Path

from analysis.table import text_table
from sweep.base.config import cache_directory
from tests.cluster.slurm import SILENCE, Slurm, obstacle
from tests.cluster.slurm_cases import CASES, Case, Ending

HEAD = f"""\
# A sweep under Slurm

Made by `scripts/slurm-check`: {{version}} on one machine, with two nodes in separate network namespaces, and
`scripts/cluster/slurm.sbatch` submitted as it is, on the simulated engine. Here Slurm marks a silent node as down
after {SILENCE} s (default: 300 s), and a requeued job waits for 25 s (default: 120 s).

`requeued`: how often Slurm started the job again. `ok`: trials of the plan whose row is ok. `twice`: trials with more
than one good row. `nodes`: those on which a trial ran. After each case no engine was left on the machine within 30 s.
"""
HEADINGS = ("case", "state of the job", "status", "requeued", "ok", "twice", "nodes", "time")


def line(case: Case, end: Ending) -> str:
    """Return a line of the table."""
    ok = f"{end.outcomes['ok']} of {end.trials}"
    name = (case.act.__doc__ or "").rstrip(".")
    row = (name, end.state, end.status, end.requeued, ok, end.twice, end.nodes, f"{end.seconds:.0f} s")
    return text_table(HEADINGS, [row]).markdown()[-1]


def main(names: list[str]) -> int:
    """Run the named cases, or all. Return 1 if a case ended in a wrong way, and 2 if there is no Slurm."""
    if reason := obstacle():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that nodes and networks are removed
    failures = 0
    with Slurm() as slurm, tempfile.TemporaryDirectory(prefix="slurm-check-", dir="/tmp") as folder:
        print(HEAD.format(version=slurm.command("sinfo", "--version").capitalize()))
        print(*text_table(HEADINGS, []).markdown(), sep="\n", flush=True)
        for case in CASES:
            name = case.act.__name__
            if names and name not in names:
                continue
            try:
                end = case.act(slurm, Path(folder) / name, cache_directory(None))
            except AssertionError as error:
                failures += 1
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                for job in slurm.jobs:
                    job.cancel()
                continue
            print(line(case, end), flush=True)
            if (failure := case.failure(end)) is not None:
                failures += 1
                print(f"{name}: {failure}\n{slurm.jobs[-1].log()}", file=sys.stderr, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measures the processor time of the commands for which a person waits, as multiples of `python -c pass`.

    python -m benchmarks.startup

It makes a run of 36 trials with its report and starts each command five times; the least time counts. Prints a Markdown
table, for docs/measurements/startup.md.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from sweep.base.config import ROOT
from tests.support.synthetic_run import make_run

TIMES = 5
WITH_HELP = ("", "run", "status", "summary", "report", "compare", "explain", "studies", "wandb", "rerun", "capacity")


def processor_seconds(arguments: list[str]) -> float:
    """Return the least user and system time of a command and its children, in seconds."""
    times = []
    for _ in range(TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = str(make_run(Path(folder) / "run", replicates=3, batches=(1, 8), workloads=("qa", "reasoning")).out)
        commands = {"`import llm_sweep`": ["-c", "import llm_sweep"]}
        for name in WITH_HELP:
            commands[" ".join(filter(None, ("`sweep", name, "--help`")))] = ["-m", "sweep", *name.split(), "--help"]
        commands["`sweep status RUN`"] = ["-m", "sweep", "status", run]
        subprocess.run([sys.executable, "-m", "sweep", "report", run], cwd=ROOT, check=True, capture_output=True)
        commands["`sweep summary RUN`"] = ["-m", "sweep", "summary", run]
        commands["`sweep summary RUN --table`, which computes it"] = ["-m", "sweep", "summary", run, "--table"]
        plan = ["+experiment=throughput_bound", "dry_run=true", f"out={folder}/planned"]
        commands[f"`sweep {' '.join(plan[:2])}`"] = ["-m", "sweep", *plan]
        bare = processor_seconds(["-c", "pass"])
        print(f"| command | CPU, s | × `python -c pass` ({bare:.3f} s) |\n|---|---|---|")
        for name, arguments in commands.items():
            seconds = processor_seconds(arguments)
            print(f"| {name} | {seconds:.2f} | {seconds / bare:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Measures the time of a run whose 20,000 trials are done, the time of a status, and the driver's memory.

    python -m benchmarks.resume [TRIALS]
    python -m benchmarks.resume --status 100000     of a status alone

The command itself plans this many trials (dry run). Then a ledger with a row for each trial is written, copied from a
measured row. The time is that of the same command, which has nothing to do, from start to exit. Prints one JSON object:
wall and processor seconds, and peak resident memory in MiB, of each command. The first command compiles Python's
modules, so the measured commands find them compiled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from sweep.base.config import ROOT
from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.checksums import sealed
from sweep.disk.ledger_lines.shared_texts import Texts
from sweep.disk.run_files import RunPaths, read_plan
from sweep.drive.monitor.totals import count_anew, write_totals


def command(out: Path, trials: int) -> list[str]:
    means = ",".join(f"{0.02 + index * 1e-6:.6f}" for index in range(trials // 100))
    point = ("backend=simulated", "model=tiny-llama", "workload=qa", "workload.num_requests=1", "tracking=none")
    grid = (f"backend.itl.mean={means}", "load.batch_size=1,2,3,4,5,6,7,8,9,10", "replicates=10", "cluster=inline")
    return [sys.executable, "-m", "sweep", *point, *grid, f"out={out}"]


class Cost(NamedTuple):
    """The cost of a command, and its output."""

    seconds: float
    processor_seconds: float
    peak_mib: int
    output: str

    def as_dict(self) -> dict[str, Any]:
        """Return the costs in the units in which they are printed."""
        return {"seconds": round(self.seconds, 2), "cpu": round(self.processor_seconds, 2), "peak_mib": self.peak_mib}


def measure(arguments: list[str], kill_after: str | None = None) -> Cost:
    """Run a command and return its cost. After a line with `kill_after` it is killed, to avoid a long report.

    Python keeps its compiled modules, as by default.
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin, output = time.monotonic(), ""
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environ
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if kill_after and kill_after in line:
                process.kill()
        _, _, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    return Cost(seconds, usage.ru_utime + usage.ru_stime, round(usage.ru_maxrss / 1024), output)


def done_row(sample: Mapping[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return a row of realistic size for this trial of the plan. Each replicate is a launch with its own facts."""
    deployment, attempt = entry["deployment_id"], str(entry["replicate"] + 1)
    log, own_log = (f"/{row}/engine.log" for row in (f"{sample['deployment_id']}/1", f"{deployment}/{attempt}"))
    return {
        **sample,
        "trial_id": entry["trial_id"],
        "deployment_id": deployment,
        "attempt": attempt,
        "engine_facts": sample["engine_facts"].replace(log, own_log),
        "replicate": entry["replicate"],
        "seed": entry["seed"],
        "config": json.dumps(entry["config"]),
        **entry["coordinates"],
    }


def begin(out: Path, trials: int) -> Cost:
    """Plan the trials, measure the first, and write a similar row for each trial. Return the cost of that start."""
    begun = measure(command(out, trials), kill_after=f"[1/{trials}")
    rows = Ledger(out / "ledger.jsonl", write=False).rows.values()
    sample = next((row for row in rows if row["outcome"] == "ok"), None)
    assert sample is not None, f"the first trial is not ok: {begun.output}"
    entries = [entry for entry in read_plan(out / "plan.jsonl") if entry["kind"] == "trial"]
    texts = Texts()
    with (out / "ledger.jsonl").open("ab") as ledger:
        for entry in entries:
            ledger.writelines(map(sealed, texts.stored(done_row(dict(sample), entry))))
    return begun


def elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do work in a separate process, since a command's peak memory includes that of the process that starts it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        return other.submit(work, *arguments).result()


def _write_totals(out: Path) -> None:
    paths = RunPaths(out)
    write_totals(paths, count_anew(paths)[0])


def status_costs(out: Path) -> dict[str, Any]:
    """Return the costs of `sweep status`: from the driver's totals, and from the ledger, as after a killed driver."""
    paths = RunPaths(out)
    paths.totals.unlink(missing_ok=True)
    counted = measure([sys.executable, "-m", "sweep", "status", str(out)])
    elsewhere(_write_totals, out)
    read = measure([sys.executable, "-m", "sweep", "status", str(out)])
    assert read.output.splitlines()[0] == counted.output.splitlines()[0], read.output
    return {"status": read.as_dict(), "status_after_a_killed_driver": counted.as_dict()}


def resume_costs(out: Path, trials: int) -> dict[str, Any]:
    """Return the costs of the same command with nothing to do; the first time it makes tables and report."""
    planned = measure([*command(out, trials), "dry_run=true"])
    assert ", 0 to run" in planned.output, planned.output  # otherwise the next command would measure all trials
    first = measure(command(out, trials))
    again = measure(command(out, trials))
    assert ", 0 to run" in again.output, again.output
    return {"dry_run": planned.as_dict(), "first": first.as_dict(), "again": again.as_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int, nargs="?", default=20_000)
    parser.add_argument("--status", action="store_true", help="of a status alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/compiled"  # in the environment, which `elsewhere` inherits
        out = Path(folder) / "out"
        begun = elsewhere(begin, out, options.trials)
        size = round((out / "ledger.jsonl").stat().st_size / 2**20)
        result = {"trials": options.trials, "ledger_mib": size, "begin": begun.as_dict(), **status_costs(out)}
        if not options.status:
            result |= resume_costs(out, options.trials)
        print(json.dumps(result))


if __name__ == "__main__":
    main()

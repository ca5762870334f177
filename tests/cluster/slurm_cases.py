"""The cases that a sweep under Slurm has to survive: each submits scripts/cluster/slurm.sbatch and checks its end."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cluster.slurm import SILENCE, Job, Slurm
from tests.support.waiting import wait_until

# Trials of some seconds, four in each launch: two launches, and twelve.
SHORT = ("load.batch_size=1,2,3,4", "backend.itl.mean=0.05,0.055", "backend.ttft.mean=0.3")
LONG = ("load.batch_size=1,2,3,4", "backend.itl.mean=0.05,0.055,0.06", "replicates=4", "backend.ttft.mean=0.3")
UNDER_WAY, END = 420.0, 720.0  # s for these on a busy machine, at most; half a minute and two minutes otherwise


class Ending(NamedTuple):
    """The end of a case, as a line of the table has it."""

    state: str  # of the job, by Slurm
    status: int  # exit status of the batch script
    requeued: int
    trials: int
    outcomes: Counter[str]
    twice: int  # trials with more than one good row
    nodes: int  # on which attempts ran
    seconds: float


def _nodes(job: Job) -> set[str]:
    """Return the nodes on which attempts started."""
    return {entry["node"] for entry in job.sweep.ledger() if entry["event"] == "attempt_placed"}


def under_way(job: Job) -> None:
    """Wait until both nodes have work and a trial has ended."""
    started = lambda: job.rows() and len(_nodes(job)) == 2  # noqa: E731
    wait_until(lambda: started() or job.ended(), UNDER_WAY, "both nodes measure", poll=0.5)
    assert not job.ended(), job.log()


def ending(job: Job, begin: float, within: float = END) -> Ending:
    """Wait for the end of a job; return it. No engine is left, and every trial of the plan has its row."""
    try:
        wait_until(job.ended, within, "the end of the job", poll=1)
    except AssertionError as error:
        raise AssertionError(f"{error}, which is {job.state}:\n{job.log()}") from None
    seconds = time.monotonic() - begin
    sweep, outcomes, twice = job.sweep, Counter[str](), 0
    ledger = sweep.ledger()
    if ledger:
        wait_until(lambda: not sweep.marked(), 30, "no engine is left", poll=1)
        good = Counter(row["trial_id"] for row in sweep.committed() if row["outcome"] == "ok")
        outcomes, twice = sweep.measured(), sum(count > 1 for count in good.values())
    trials = len(sweep.plan()) if ledger else 0
    return Ending(job.state, job.exit_status(), job.restarts, trials, outcomes, twice, len(_nodes(job)), seconds)


def _run(slurm: Slurm, folder: Path, cache: Path, fault: Callable[[Job], None], *arguments: str) -> Ending:
    begin = time.monotonic()
    job = slurm.submit(folder, *arguments, options=("--time=20",), cache=cache)
    under_way(job)
    fault(job)
    return ending(job, begin)


def _down(slurm: Slurm, name: str) -> None:
    slurm.command("scontrol", "update", f"nodename={name}", "state=down", "reason=a test")


def _kill(slurm: Slurm, job: Job, node: str, program: str, log: str) -> None:
    """Kill a program of Ray on a node, and wait until its step has started it again, while there is work left."""
    log_file = job.results / log
    started = log_file.read_text().count("Ray runtime started")
    next(process for process in slurm.processes(node) if process.name() == program).kill()
    again = lambda: log_file.read_text().count("Ray runtime started") > started  # noqa: E731
    wait_until(lambda: again() or job.ended(), 180, f"{log} has started again", poll=1)
    assert again(), f"the job was {job.state} before {log} had started again"


def no_fault(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """One node."""
    begin = time.monotonic()
    return ending(slurm.submit(folder, *SHORT, options=("--nodes=1", "--time=20"), cache=cache), begin)


def node_down(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; `scontrol update nodename=n2 state=down`."""
    return _run(slurm, folder, cache, lambda job: _down(slurm, "n2"), *SHORT)


def link_cut(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; the second one's network is cut, without any notice."""
    try:
        return _run(slurm, folder, cache, lambda job: slurm.network.cut(1), *LONG)
    finally:
        slurm.network.mend(1)
        wait_until(lambda: slurm.states() == {"idle"}, 2 * SILENCE + 60, "the node is back", poll=1)


def first_node_down(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; `scontrol` takes the first one down; Slurm holds the requeued job; `scontrol` resumes node and job."""

    def fault(job: Job) -> None:
        _down(slurm, "n1")
        wait_until(lambda: "held" in job.facts()["Reason"], 120, "a job that is held", poll=1)
        slurm.command("scontrol", "update", "nodename=n1", "state=resume")
        slurm.command("scontrol", "release", job.number)

    return _run(slurm, folder, cache, fault, *SHORT)


def first_node_off(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; the first one loses power without a word, and is back when Slurm has noticed."""

    def fault(job: Job) -> None:
        slurm.power_off("n1")
        wait_until(lambda: job.state == "PENDING", 2 * SILENCE + 120, "a requeued job", poll=1)
        slurm.start_node("n1")

    return _run(slurm, folder, cache, fault, *SHORT)


def ray_killed(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; the second one's raylet is killed, and its step starts another."""
    return _run(slurm, folder, cache, lambda job: _kill(slurm, job, "n2", "raylet", "ray-1.log"), *LONG)


def head_killed(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two nodes; Ray's head is killed, its step starts another, and the others join it."""
    return _run(slurm, folder, cache, lambda job: _kill(slurm, job, "n1", "gcs_server", "ray-head.log"), *LONG)


def time_limit(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """One node for five minutes, and more work than fits: the job is requeued until nothing is left."""
    begin = time.monotonic()
    return ending(slurm.submit(folder, *LONG, options=("--nodes=1", "--time=5"), cache=cache), begin, 1200)


def bad_input(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """An argument that is refused: the job ends at once."""
    begin = time.monotonic()
    return ending(slurm.submit(folder, "nope=1", options=("--nodes=1", "--time=20"), cache=cache), begin)


def failed_trials(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """An engine that does not start: the job ends with the failures."""
    begin = time.monotonic()
    arguments = ("backend.flags={nope: 1}", "attempts=1")
    return ending(slurm.submit(folder, *arguments, options=("--nodes=1", "--time=20"), cache=cache), begin)


def cancelled(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """`scancel` while trials run."""
    return _run(slurm, folder, cache, Job.cancel, *LONG)


def two_jobs(slurm: Slurm, folder: Path, cache: Path) -> Ending:
    """Two jobs at once, submitted from one folder; the line is the second one's."""
    begin = time.monotonic()
    jobs = [slurm.submit(folder, *SHORT, options=("--nodes=1", "--time=20"), cache=cache) for _ in range(2)]
    first, second = [ending(job, begin) for job in jobs]
    assert (first.state, first.outcomes) == (second.state, second.outcomes) == ("COMPLETED", {"ok": second.trials})
    return second


class Case(NamedTuple):
    """A case, and the end that it has to have."""

    act: Callable[[Slurm, Path, Path], Ending]
    state: str = "COMPLETED"
    status: int = 0
    requeued: bool = False
    outcome: str | None = "ok"  # of all trials; None where some are not run

    def failure(self, end: Ending) -> str | None:
        """Return how an end differs from the one that it has to have; None if it does not."""
        if (end.state, end.status, end.requeued > 0) != (self.state, self.status, self.requeued):
            return f"{end.state}, status {end.status}, requeued {end.requeued} times"
        if self.outcome is not None and end.outcomes != {self.outcome: end.trials}:
            return f"of {end.trials} trials {dict(end.outcomes)}"
        return f"{end.twice} trials measured twice" if end.twice else None


CASES = (
    Case(no_fault),
    Case(node_down),
    Case(link_cut),
    Case(first_node_down, requeued=True),
    Case(first_node_off, requeued=True),
    Case(ray_killed),
    Case(head_killed),
    Case(time_limit, requeued=True),
    Case(two_jobs),
    Case(failed_trials, "FAILED", 1, outcome="launch_failed"),
    Case(bad_input, "FAILED", 2, outcome=None),
    Case(cancelled, "CANCELLED", outcome=None),
)

"""Retries of failures: at the run's tail, in the next run, elsewhere, and not forever."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from sweep.__main__ import main
from sweep.base.config import ISSUE_AGAIN, ROOT, Halted
from sweep.cli import reissue
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import driver
from sweep.drive.stop_control import JOB_END, JOB_END_MARGIN
from tests.cli.test_line import SIMULATED
from tests.drive.test_driver import ByNode, Scripted, deployment, drive, make_plan, outcomes, replicated
from tests.support.waiting import wait_until

TRIAL = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2"]


def test_what_failed_is_tried_once_more_when_nothing_else_is_left_and_elsewhere(tmp_path):
    def outcome(name, node):
        return "engine_crashed" if name == "a" and node == "n0" else "ok"

    executor = ByNode(outcome, nodes=2)
    plan = make_plan(*(deployment(name, [name]) for name in "abcd"), retry="in_run")
    _, ledger = drive(plan, tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"ok"}
    assert executor.placed[0] == ("a", "n0")
    assert executor.placed[-1] == ("a", "n1"), "the last of all, and on the other node"
    assert len(executor.placed) == 5
    assert executor.driver.display.done == 4


class DropsOnceEnded:
    """A race that drops trials once one trial ended."""

    def __init__(self, awaited, *beaten):
        self.awaited, self.beaten, self.dropped = awaited, beaten, {}

    def settle(self, trial_ids):
        if self.dropped or self.awaited not in trial_ids:
            return False
        self.dropped = dict.fromkeys(self.beaten, "beaten")
        return True


def test_a_failed_trial_of_a_dropped_point_is_not_launched_again(tmp_path):
    """The race drops the last launch: then the failed trial of another point still has its retry."""
    plan = make_plan(replicated("a", [1]), replicated("b", [1]), retry="in_run", relaunch="per_replicate")
    executor = Scripted({"a": [["ok"], ["hung"], ["ok"], ["ok"]], "b": [["ok"], ["hung"]]})
    _, ledger = drive(plan, tmp_path, executor, DropsOnceEnded("a1r2", "b1r1", "b1r2"))
    assert [name for name, _ in executor.submitted] == ["a", "b", "a", "b", "a", "a"]
    ok = dict.fromkeys(("a1r0", "a1r1", "a1r2", "b1r0"), "ok")
    assert outcomes(ledger) == ok | dict.fromkeys(("b1r1", "b1r2"), "dropped")
    assert executor.driver.display.counts() == "6/6"


def test_the_rows_of_what_cannot_run_here_count_before_anything_starts(tmp_path):
    executor = Scripted({"a": [["ok"]], "b": [["ok"]]}, nodes=2)
    plan = make_plan(deployment("gpu", ["1"], unavailable="no docker"), deployment("a", ["2"]), deployment("b", ["3"]))
    _, ledger = drive(plan, tmp_path, executor, DropsOnceEnded("1", "3"))
    assert outcomes(ledger) == {"1": "unavailable", "2": "ok", "3": "dropped"}


def test_a_busy_other_node_is_waited_for(tmp_path):
    """The node on which it failed is free meanwhile."""

    class Busy(ByNode):
        def events(self):
            kept = [entry for entry in self.pending if entry[0].deployment.deployment_id == "long"]
            others = [entry for entry in self.pending if entry not in kept]
            self.waited = getattr(self, "waited", 0) + (not others)
            if others or self.waited > 3:
                self.pending = type(self.pending)([*others, *kept])
                yield from super().events()

    executor = Busy(lambda name, node: "hung" if (name, node) == ("a", "n0") else "ok", nodes=2)
    _, ledger = drive(make_plan(deployment("a", ["1"]), deployment("long", ["2"]), retry="in_run"), tmp_path, executor)
    assert executor.placed == [("a", "n0"), ("long", "n1"), ("a", "n1")]
    assert outcomes(ledger) == {"1": "ok", "2": "ok"}


def test_the_only_node_has_the_second_try_too(tmp_path):
    executor = Scripted({"a": [["ok", "engine_crashed"], ["ok"]]})
    _, ledger = drive(make_plan(deployment("a", ["1", "2"]), retry="in_run"), tmp_path, executor)
    assert executor.submitted == [("a", ["1", "2"]), ("a", ["2"])]
    assert outcomes(ledger) == {"1": "ok", "2": "ok"}


@pytest.mark.parametrize("retry", ["next_run", "none"])
def test_no_second_try_in_the_run_where_that_is_not_asked_for(tmp_path, retry):
    executor = Scripted({"a": [["hung"]]})
    drive(make_plan(deployment("a", ["1"]), retry=retry), tmp_path, executor)
    assert len(executor.submitted) == 1


def test_replicates_that_were_not_even_tried_are_tried_at_the_tail(tmp_path):
    executor = ByNode(lambda name, node: "launch_failed" if (name, node) == ("a", "n0") else "ok", nodes=2)
    plan = make_plan(replicated("a", [1]), replicated("b", [1]), retry="in_run", relaunch="per_replicate")
    _, ledger = drive(plan, tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"ok"}


# Through the whole command -------------------------------------------------------------------------------------------


def dying_python(folder, *deaths):
    """An interpreter that an engine's process dies in, at its launches of these numbers, killed or with an error."""
    count, script = folder / "launches", folder / "python"
    cases = "".join(f"{number}) {how} ;; " for number, how in deaths)
    script.write_text(
        f'#!/bin/bash\nif [ -n "$SWEEP_MARKER" ]; then echo >> {count}\n'
        f'case $(wc -l < {count}) in {cases} esac; fi\nexec {sys.executable} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    count.touch()
    return f"backend.env.python={script}"


KILLED, ERROR = "kill -9 $$", 'echo "ValueError: no such flag"; exit 1'


@pytest.mark.slow
def test_an_engine_that_is_killed_is_tried_again_in_the_same_command(tmp_path):
    """Killed at both launches of its attempt: without a second try the trial would end as it is."""
    command = [*TRIAL, f"out={tmp_path / 'out'}", "attempts=1", dying_python(tmp_path, (1, KILLED))]
    assert main([*command, "retry=next_run"]) == 1
    assert [row["fault"] for row in read_trials(RunPaths(tmp_path / "out").trials)] == ["surroundings"]
    (tmp_path / "launches").write_text("")
    assert main([*command, f"out={tmp_path / 'other'}"]) == 0


@pytest.mark.slow
def test_a_bad_flag_is_final_after_its_second_try(tmp_path, capsys):
    deaths = [(number, ERROR) for number in range(1, 99)]
    command = [*TRIAL, f"out={tmp_path / 'out'}", "attempts=1", dying_python(tmp_path, *deaths)]
    assert main(command) == 1
    launches = lambda: len((tmp_path / "launches").read_text().splitlines())  # noqa: E731
    assert launches() == 2
    assert main(command) == 1, "finished, with failures"
    assert launches() == 2, "nothing was launched"
    assert "not retried: 1 trial failed twice with the same message; retry_failed=true" in capsys.readouterr().out
    assert main([*command, "retry_failed=true"]) == 1
    assert launches() == 3


def test_a_run_that_had_to_stop_asks_to_be_issued_again(tmp_path, monkeypatch, capsys):
    def halt(*arguments):
        raise Halted("Ray's head has not answered for 40 s")

    monkeypatch.setattr(driver.Driver, "_loop", halt)
    assert main([*TRIAL, f"out={tmp_path / 'out'}"]) == ISSUE_AGAIN == 75
    assert "stopped: Ray's head" in capsys.readouterr().err


# Issuing again -------------------------------------------------------------------------------------------------------


class Issued(reissue.Reissuer):
    """Commands that end at once, with these statuses."""

    def __init__(self, *statuses, deadline=None):
        super().__init__([])
        self.statuses, self.until, self.pauses, self.said_last = list(statuses), deadline, [], True

    def _issue(self):
        return self.statuses.pop(0)

    def _deadline(self):
        return self.until

    def _ended(self):
        return self.said_last

    def _interrupted_within(self, seconds):
        self.pauses.append(seconds)
        return False


@pytest.mark.parametrize(
    ("statuses", "end", "issued"),
    [
        ([0], 0, 1),
        ([1, 0], 1, 1),
        ([2, 0], 2, 1),
        ([130, 0], 130, 1),
        ([75, 75, 0], 0, 3),
        ([75, 1], 1, 2),
        ([75, 2, 2, 0], 0, 4),
        ([-9, 0], 0, 2),
    ],
    ids=["finished", "with failures", "bad input", "interrupted", "again", "then failures", "no Ray yet", "killed"],
)
def test_the_command_is_issued_again_on_75_alone(statuses, end, issued, capsys):
    supervisor = Issued(*statuses)
    assert supervisor.run() == end
    assert len(supervisor.pauses) == issued - 1
    assert supervisor.pauses == [10.0, 20.0, 40.0][: issued - 1], "with back-off"


def test_failures_without_a_last_word_are_a_driver_that_died(capsys):
    supervisor = Issued(1, 0)
    supervisor.said_last = False
    assert supervisor.run() == 0


@pytest.mark.slow
def test_the_last_word_of_a_driver_is_that_of_its_own_process(tmp_path):
    """A failed trial ends it with 1; the same status from another process than the driver is no end."""
    out = tmp_path / "out"
    assert main([*TRIAL, f"out={out}"]) == 0
    supervisor = reissue.Reissuer([*TRIAL, f"out={out}"])
    supervisor.process = SimpleNamespace(pid=os.getpid())
    assert supervisor._ended()
    supervisor.issued_at = (
        time.time() + 100
    )  # an earlier command had this process id, as the same often has in a container
    assert not supervisor._ended()
    supervisor.process, supervisor.issued_at = SimpleNamespace(pid=1), 0.0
    assert not supervisor._ended()
    (out / "status.json").unlink()
    assert not supervisor._ended()


def test_it_ends_at_the_deadline_and_when_nothing_works_for_hours(monkeypatch):
    assert Issued(75, 0, deadline=time.time() - 1).run() == 1
    monkeypatch.setattr(reissue, "GIVEN_UP_AFTER", -1.0)
    assert Issued(75, 0).run() == 1


def test_at_the_end_of_a_batch_job_the_next_job_is_asked_for(monkeypatch):
    monkeypatch.setenv(JOB_END, str(int(time.time() + JOB_END_MARGIN)))
    assert Issued(75, 0).run() == 75
    assert Issued(75, 0, deadline=time.time() - 1).run() == 1, "the user's own deadline ends it for good"
    assert Issued(1, 0).run() == 1


@pytest.mark.slow
def test_a_run_stops_before_its_batch_job_ends_and_asks_for_another(tmp_path, monkeypatch, capsys):
    command = [*TRIAL, f"out={tmp_path / 'out'}", f"deadline={datetime.now() + timedelta(hours=2):%H:%M}"]
    monkeypatch.setenv(JOB_END, str(int(time.time() + JOB_END_MARGIN - 60)))
    assert main(command) == ISSUE_AGAIN
    assert "the time of this batch job passed" in capsys.readouterr().out
    monkeypatch.setenv(JOB_END, str(int(time.time() + 3600)))
    assert main(command) == 0, "the end of the job before is not taken for the user's deadline"


@pytest.mark.slow
def test_the_command_that_is_issued_is_the_whole_one_and_hears_signals(tmp_path):
    """Bad input is printed once, by the command itself; a signal to the supervisor drains the command."""
    command = [sys.executable, "-m", "sweep", "reissue"]
    bad = subprocess.run([*command, "nope=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stderr.count("error: ")) == (2, 1)
    long = [*TRIAL, "workload.num_requests=2000", f"out={tmp_path / 'out'}"]
    with subprocess.Popen([*command, *long], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        status = tmp_path / "out" / "status.json"
        wait_until(lambda: status.exists() and json.loads(status.read_text())["running"], 60)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130

"""A supervisor for unattended runs: repeats the same command as long as its exit status is 75.

A driver that had to stop (Ray gone, a full disk, a killed process) leaves a run that the same command resumes. Failed
trials, bad input, interrupts and a passed deadline end the supervisor. At the end of a batch job it passes on the
status 75, so that the next job continues.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from sweep.base.config import ISSUE_AGAIN, ConfigError, Settings, import_path
from sweep.base.options import ConfigPath
from sweep.base.time_factor import scaled
from sweep.base.wording import duration_text
from sweep.disk.run_files import RunPaths
from sweep.drive.monitor.status import last_status
from sweep.drive.output_folder import results_folder
from sweep.drive.stop_control import STOP_SIGNALS, job_end, user_deadline
from sweep.plan.compose import compose_run

FIRST_PAUSE, LONGEST_PAUSE = scaled(10.0), scaled(600.0)  # s before the command is repeated; doubled each time
WORKED = scaled(900.0)  # s of runtime after which a command counts as working, and the pauses are short again
GIVEN_UP_AFTER = scaled(8 * 3600.0)  # s in which every command stopped early, after which the supervisor gives up
BAD_INPUT = 2
TRIALS_FAILED = 1  # also Ray's status when it kills this process because Ray is broken
INCOMPLETE = 1  # at a deadline, and when giving up: with 75 a caller would repeat the command endlessly


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Reissuer:
    """Repeats a command line until it has finished for good."""

    def __init__(self, arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
        self.arguments, self.config_dirs = list(arguments), list(config_dirs)
        self.process: subprocess.Popen[bytes] | None = None
        self.issued_at = 0.0  # s since the epoch
        self.signals = 0  # number of signals received

    def run(self) -> int:
        """Repeat the command until it has finished for good; return its last exit status."""
        deadline = self._deadline()
        previous = {number: signal.signal(number, self._forward) for number in STOP_SIGNALS}
        try:
            return self._run(deadline)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, deadline: float | None) -> int:
        pause, failing_since, issued = FIRST_PAUSE, time.monotonic(), 0
        while True:
            begin = time.monotonic()
            status = self._issue()
            issued += 1
            if time.monotonic() - begin >= WORKED:
                pause, failing_since = FIRST_PAUSE, time.monotonic()
            # The arguments have worked before, so a rejection is due to the environment, e.g. Ray is not up yet.
            temporary = status == ISSUE_AGAIN or status < 0 or (status == BAD_INPUT and issued > 1)
            temporary |= status == TRIALS_FAILED and not self._ended()
            if self.signals or not temporary:
                return 130 if status < 0 else status
            if deadline is not None and time.time() >= deadline:
                return INCOMPLETE
            if (end := job_end()) is not None and time.time() + pause >= end:
                return ISSUE_AGAIN  # continue in another job
            if time.monotonic() - failing_since > GIVEN_UP_AFTER:
                print(f"giving up: every command in {duration_text(GIVEN_UP_AFTER)} has stopped early", file=sys.stderr)
                return INCOMPLETE
            print(f"exit status {status}: repeating the command in {duration_text(pause)}", file=sys.stderr)
            if self._interrupted_within(pause):
                return 130
            pause = min(2 * pause, LONGEST_PAUSE)

    def _issue(self) -> int:
        folders = [part for folder in self.config_dirs for part in ("--config-dir", folder)]
        command = [sys.executable, "-m", "sweep", "run", *folders, *self.arguments]
        # In a separate session, so that a terminal's Ctrl-C reaches it only once, through `_forward`.
        environ, self.issued_at = {**os.environ, "PYTHONPATH": import_path()}, time.time()
        with subprocess.Popen(command, env=environ, start_new_session=True) as self.process:
            return self.process.wait()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _interrupted_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.signals:
            time.sleep(min(0.5, seconds))
        return self.signals > 0

    def _ended(self) -> bool:
        """Return whether the command ended normally, according to the last status that its driver wrote."""
        settings = self._settings()
        if settings is None or self.process is None:
            return True
        consequence = "it is unknown whether the command ended normally, so it is repeated"
        status = last_status(RunPaths(results_folder(settings)), consequence, _print_error) or {}
        is_own = status.get("pid") == self.process.pid and status["at"] >= self.issued_at  # ids are used again
        return bool(status.get("ended")) and is_own

    def _deadline(self) -> float | None:
        """Return the command's deadline in s since the epoch; None if it has no deadline or bad input."""
        settings = self._settings()
        if settings is None:
            return None
        return user_deadline(settings.deadline, RunPaths(results_folder(settings)), _print_error)

    def _settings(self) -> Settings | None:
        """Return the command's settings; None for bad input, which the command itself reports."""
        try:
            return compose_run(self.arguments, lambda cluster: "cpu", ConfigPath.of_user(self.config_dirs)).settings
        except ConfigError:
            return None

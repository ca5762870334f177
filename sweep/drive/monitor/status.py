"""`sweep status RUN`: shows finished, running and failed trials, the reasons for failures, and the time left.

RUN is a results folder, its name under results/, or the URL of an object store. The command reads the driver's files,
so it works from another terminal, during the sweep and afterwards.
"""

import json
import socket
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweep.base.config import ConfigError, run_folder
from sweep.base.records import TrialProgress
from sweep.base.time_factor import scaled
from sweep.base.whole_file import read_bounded
from sweep.base.wording import count, duration_text, time_left
from sweep.disk import object_store, run_files
from sweep.disk.folder_lock import identity_runs, process_identity
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.run_files import RunPaths
from sweep.drive.monitor.progress import Display, progress_text
from sweep.drive.monitor.totals import Totals, count_anew, read_totals
from sweep.drive.policy import SETTLED, without_numbers

STATUS_KEYS = {"at", "pid", "host", "stopping", "ended", "left", "deadline", "running"}
INTERVAL = 2.0  # s between the driver's reports
DRIVER_TIMEOUT = scaled(30.0)  # s after which a driver whose process cannot be looked up is considered dead
MOST_FAILURES = 20  # failures that are listed; further failures are only counted
MOST_QUESTIONS = 20  # tasks whose best configuration so far is stored


class StatusWriter:
    """Writes OUT/status.json, for the driver."""

    def __init__(self, paths: RunPaths, display: Display) -> None:
        self.paths, self.display = paths, display
        self.write_after = 0.0  # monotonic

    def write(
        self,
        nodes: Mapping[str, str],
        stopping: bool,
        ended: bool = False,
        deadline: Mapping[str, Any] | None = None,
        pause: str | None = None,
    ) -> None:
        """Write the current state, at most every INTERVAL seconds; `nodes` maps launches to node addresses."""
        now = time.monotonic()
        if now < self.write_after and not ended:
            return
        self.write_after = now + INTERVAL
        running = [
            {
                "what": label,
                "state": state,
                "node": nodes.get(key),
                "since": now - since,
                "progress": progress._asdict() if (progress := self.display.progress.get(key)) else None,
            }
            for key, (label, state, since) in self.display.running.items()
        ]
        content = {
            "at": time.time(),
            "host": socket.gethostname(),
            **process_identity(),
            "stopping": stopping,
            "ended": ended,
            "left": self.display.seconds_left(),
            "deadline": deadline,
            "pause": pause,
            "running": running,
            "usage": usage._asdict() if (usage := self.display.usage) else None,
            "failures": self.display.failures,
            "best": self.display.leaders.best(MOST_QUESTIONS),
            "summary": self.display.summary(),
        }
        run_files.write_whole(self.paths, self.paths.status, sealed(content))


class Status(NamedTuple):
    """The current state of a run."""

    totals: Totals  # totals of the current plan
    driver: dict[str, Any] | None  # its last status.json
    log: str  # folder of the logs of failed engines
    messages: list[str]  # messages about damaged lines of the ledger
    problem: str | None = None  # why status.json cannot be read; then it is unknown whether a driver is running

    @property
    def alive(self) -> bool:
        """Return whether a driver is running."""
        return is_alive(self.driver)


def is_alive(driver: Mapping[str, Any] | None) -> bool:
    """Return whether the driver that wrote a status.json still runs, by its process or else by its last report."""
    if driver is None or driver["ended"]:
        return False
    runs = identity_runs(driver)
    return bool(time.time() - driver["at"] < DRIVER_TIMEOUT) if runs is None else runs


def read(out: Path) -> Status:
    """Read the status of a run from its files. Raises ConfigError if the run does not exist."""
    paths = RunPaths(out)
    driver, problem, messages = None, None, list[str]()
    try:
        try:
            driver = read_status_file(paths)
        except run_files.DamagedFile as error:
            problem = str(error)
        try:
            totals = read_totals(paths, is_alive(driver))
        except run_files.DamagedFile as error:
            totals, messages = None, [f"{error}: counting again"]
        if totals is None:
            totals, damage = count_anew(paths)
            messages += damage
    except (FileNotFoundError, NotADirectoryError):
        allowed = "a results folder, or its name under results/"
        raise ConfigError(f"{out}: not a run; expected {allowed}") from None
    return Status(totals, driver, str(paths.deployments), messages, problem)


def read_status_file(paths: RunPaths) -> dict[str, Any] | None:
    """Return the parsed content of status.json; None if no driver has run here.

    Raises DamagedFile if the file has been changed.
    """
    try:
        content = unsealed(read_bounded(paths.status))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise run_files.DamagedFile(paths.status, str(error)) from None
    if missing := sorted(STATUS_KEYS - content.keys()):
        raise run_files.DamagedFile(paths.status, f"it lacks {', '.join(missing)}")
    return content


def last_status(paths: RunPaths, consequence: str, notify: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the last driver's status; None if its file is missing, or damaged (it will be rewritten).

    `notify` gets a message about damage, which ends with `consequence`.
    """
    try:
        return read_status_file(paths)
    except run_files.DamagedFile as error:
        notify(f"{error}; {consequence}")
        return None


def render(status: Status) -> list[str]:
    """Return the lines that describe a status."""
    totals = status.totals
    done = sum(count for outcome, count in totals.outcomes.items() if outcome in SETTLED)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(totals.outcomes).most_common())
    lines = [f"{totals.name}: {done} of {totals.trials} trials done" + (f" ({counts})" if counts else "")]
    lines += [*status.messages, _driver(status), *_failed_requests(totals)]
    if status.alive and status.driver:
        lines += [status.driver["pause"]] if status.driver.get("pause") else []
        lines += [
            f"  {entry['what']} on {entry['node'] or 'no node yet'}: {entry['state']} "
            f"({duration_text(entry['since'])}){_progress(entry)}"
            for entry in status.driver["running"]
        ]
        lines += [status.driver["summary"]] if status.driver.get("summary") else []
    if totals.failures:
        texts = _failures(totals.failures)
        lines.append(f"failed or unavailable ({len(totals.failures)}); logs are under {status.log}:")
        lines += [f"  {text}" for text in texts[:MOST_FAILURES]]
        if len(texts) > MOST_FAILURES:
            lines.append(f"  and {len(texts) - MOST_FAILURES} more")
    return lines


def _progress(entry: Mapping[str, Any]) -> str:
    """Return the progress of a running trial's requests, to show after its state; empty before the first request."""
    return f": {progress_text(TrialProgress(**entry['progress']))}" if entry.get("progress") else ""


def _failures(failures: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return one line per reason why trials failed or cannot run; reasons that differ only in numbers share a line."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label, outcome, reason in failures:
        log = reason.rfind(" [") if reason.endswith("/engine.log]") else len(reason)
        alike[without_numbers(f"{outcome}: {reason[:log]}")].append(f"{label}: {outcome}: {reason}")
    return [
        texts[0] if len(texts) == 1 else f"{count(len(texts), 'trial')}, the first {texts[0]}"
        for texts in alike.values()
    ]


def status_json(status: Status) -> str:
    """Return a status as JSON for scripts: trials by outcome, failures, and the driver's last status."""
    driver = {key: value for key, value in (status.driver or {}).items() if key != "summary"}
    content = {
        "name": status.totals.name,
        "trials": status.totals.trials,
        "outcomes": status.totals.outcomes,
        "alive": status.alive,
        "driver": driver or None,
        "failures": [dict(zip(("trial", "outcome", "reason"), each, strict=True)) for each in status.totals.failures],
        "messages": status.messages + ([status.problem] if status.problem else []),
    }
    return json.dumps(content, indent=2)


def _failed_requests(totals: Totals) -> list[str]:
    """Return lines about failed requests in trials with a result; an empty list if no trial has a result."""
    if not totals.results:
        return []
    trials = totals.failed_requests
    failed = sum(failed for _, failed, _ in trials)
    lines = [
        f"failed requests: {failed:,} of {totals.requests:,}, in {len(trials)} of {count(totals.results, 'result')}"
    ]
    lines += [f"  {label}: {failed:,} of {requests:,}" for label, failed, requests in trials[:MOST_FAILURES]]
    return lines + ([f"  and {len(trials) - MOST_FAILURES} more"] if len(trials) > MOST_FAILURES else [])


def _driver(status: Status) -> str:
    driver = status.driver
    if driver is None:
        return f"unknown whether a driver is running: {status.problem}" if status.problem else "never started"
    process = f"process {driver['pid']} on {driver['host']}"
    if not status.alive:
        age = duration_text(time.time() - driver["at"])
        end = "ended" if driver["ended"] else "died; run the same command again to continue"
        return f"not running: {process} {end} ({age} ago)"
    stopping = ", stopping" if driver["stopping"] else ""
    return f"running{stopping}: {process}, {count(len(driver['running']), 'launch')}, {time_left(driver['left'])}"


def find(run: str) -> Status:
    """Return the status of a run given by its folder, its name under results/, or the URL of an object store."""
    if not object_store.is_url(run):
        return read(run_folder(run))
    with tempfile.TemporaryDirectory() as folder:
        object_store.copy(run, Path(folder), only=lambda name: name in ("plan.jsonl", "status.json"))
        return read(Path(folder))._replace(log=f"{run}/deployments")

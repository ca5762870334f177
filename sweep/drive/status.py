"""`sweep status RUN`: what is done, what runs where, what failed and why, and how long it will take.

RUN is a results folder, its name under results/, or the URL of an object store. It reads what the driver leaves on
disk, so it works from another terminal while the sweep runs, and in the morning when nothing runs any more.
"""

import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sweep.config import ConfigError
from sweep.disk import object_store, run_files
from sweep.disk.ledger import Ledger
from sweep.disk.lines import sealed, unsealed
from sweep.disk.run_files import RunPaths
from sweep.drive.progress import Display
from sweep.drive.tally import Summary, Tally
from sweep.records import Outcome
from sweep.wording import count, duration_text, time_left

STATUS_KEYS = {"at", "pid", "host", "stopping", "ended", "left", "deadline", "running"}
INTERVAL = 2.0  # s between the driver's reports
DRIVER_TIMEOUT = 30.0  # s after which a driver on another host counts as dead


class StatusWriter:
    """The driver's side: writes OUT/status.json."""

    def __init__(self, paths: RunPaths, display: Display, tally: Tally | None = None) -> None:
        self.paths, self.display, self.tally = paths, display, tally
        self.write_after = 0.0  # monotonic

    def write(
        self,
        nodes: Mapping[str, str],
        stopping: bool,
        ended: bool = False,
        deadline: Mapping[str, Any] | None = None,
        pause: str | None = None,
    ) -> None:
        """Write the present state, at most every INTERVAL seconds; `nodes` are addresses by launch."""
        now = time.monotonic()
        if now < self.write_after and not ended:
            return
        self.write_after = now + INTERVAL
        running = [
            {"what": label, "state": state, "node": nodes.get(key), "since": now - since}
            for key, (label, state, since) in self.display.running.items()
        ]
        content = {
            "at": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "stopping": stopping,
            "ended": ended,
            "left": self.display.seconds_left(),
            "deadline": deadline,
            "pause": pause,
            "running": running,
        }
        if self.tally is not None:
            content |= {"summary": self.tally.summary()._asdict(), "files": _stamps(self.paths)}
        run_files.write_whole(self.paths, self.paths.status, sealed(content))


class Status(NamedTuple):
    """A run as it is now."""

    summary: Summary
    driver: dict[str, Any] | None  # its last status.json
    log: str  # where the logs of failed engines are
    messages: list[str]  # about damaged lines of the ledger
    problem: str | None = None  # with status.json: it is not known whether a driver runs

    @property
    def alive(self) -> bool:
        """True while a driver is running."""
        return self.driver is not None and is_alive(self.driver)


def read(out: Path) -> Status:
    """Read the status of a run from its files. Raises ConfigError if there is none."""
    paths, driver, problem = RunPaths(out), None, None
    try:
        driver = read_status_file(paths)
    except run_files.DamagedFile as error:
        problem = str(error)
    log = str(paths.deployments)
    if driver is not None and _is_current(driver, paths):
        return Status(Summary(**driver["summary"]), driver, log, [])
    try:
        plan = run_files.read_plan(paths.plan)
    except (FileNotFoundError, NotADirectoryError):
        allowed = "a results folder, or the name of one under results/"
        raise ConfigError(f"{out}: no run there; allowed: {allowed}") from None
    ledger = Ledger(paths.ledger, write=False)
    ids = [(entry[f"{entry['kind']}_id"], entry) for entry in plan if entry["kind"] != "experiment"]
    names = {key: entry.get("label", key) for key, entry in ids}  # older plans have no labels
    trials = (entry for entry in plan if entry["kind"] == "trial")
    labels = {entry["trial_id"]: f"{names[entry['deployment_id']]} {names[entry['trial_id']]}" for entry in trials}
    summary = Tally(plan[0]["name"], labels, ledger.rows).summary()
    return Status(summary, driver, log, ledger.describe_damage(), problem)


def _is_current(driver: Mapping[str, Any], paths: RunPaths) -> bool:
    """Return whether a driver's summary is of the plan and the ledger that are there; a live one is a moment behind."""
    if "summary" not in driver or "files" not in driver:
        return False
    stamps, before = _stamps(paths), driver["files"]
    growing = is_alive(driver) and stamps["ledger"][0] >= before["ledger"][0]
    return stamps["plan"] == before["plan"] and (stamps["ledger"] == before["ledger"] or growing)


def _stamps(paths: RunPaths) -> dict[str, list[int]]:
    """Size and time of the files that a summary is of; zeros for one that is not there."""
    stamps = {}
    for name, path in (("plan", paths.plan), ("ledger", paths.ledger)):
        stat = path.stat() if path.is_file() else None
        stamps[name] = [stat.st_size, stat.st_mtime_ns] if stat else [0, 0]
    return stamps


def is_alive(driver: Mapping[str, Any]) -> bool:
    """Return whether the driver that wrote this is running."""
    if driver["ended"]:
        return False
    if driver["host"] == socket.gethostname():
        return psutil.pid_exists(int(driver["pid"]))
    return bool(time.time() - driver["at"] < DRIVER_TIMEOUT)


def read_status_file(paths: RunPaths) -> dict[str, Any] | None:
    """Return the last content of status.json; None if no driver ran here.

    Raises:
        DamagedFile: if it is not as it was written.
    """
    try:
        content, _ = unsealed(paths.status.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise run_files.DamagedFile(paths.status, str(error)) from None
    if missing := sorted(STATUS_KEYS - content.keys()):
        raise run_files.DamagedFile(paths.status, f"it lacks {', '.join(missing)}")
    return content


def last_status(paths: RunPaths) -> dict[str, Any] | None:
    """Return the status that the last driver left here, None without one or if it is damaged: it is written anew."""
    try:
        return read_status_file(paths)
    except run_files.DamagedFile:
        return None


def render(status: Status) -> list[str]:
    """Return the lines that describe a status."""
    summary = status.summary
    done = sum(number for outcome, number in summary.outcomes.items() if Outcome(outcome).done)
    by_number = Counter(summary.outcomes).most_common()
    counts = ", ".join(f"{number} {outcome}" for outcome, number in by_number)
    lines = [f"{summary.name}: {done} of {summary.total} trials done" + (f" ({counts})" if counts else "")]
    lines += [*status.messages, _driver(status), *_failed_requests(summary)]
    if status.alive and status.driver:
        lines += [status.driver["pause"]] if status.driver.get("pause") else []
        lines += [
            f"  {entry['what']} on {entry['node'] or 'no node yet'}: {entry['state']} ({duration_text(entry['since'])})"
            for entry in status.driver["running"]
        ]
    if summary.failures:
        lines.append(f"failed or unavailable ({summary.num_failures}); logs are under {status.log}:")
        lines += [f"  {label}: {outcome}: {reason}" for label, outcome, reason in summary.failures]
        lines += _more(summary.num_failures - len(summary.failures))
    return lines


def _failed_requests(summary: Summary) -> list[str]:
    """The requests that failed in trials with a result; nothing if none has one."""
    if not summary.num_results:
        return []
    requests = f"{summary.num_failed:,} of {summary.num_requests:,}"
    trials = f"{summary.num_with_failed} of {count(summary.num_results, 'result')}"
    lines = [f"failed requests: {requests}, in {trials}"]
    lines += [f"  {label}: {failed:,} of {measured:,}" for label, failed, measured in summary.failed_requests]
    return lines + _more(summary.num_with_failed - len(summary.failed_requests))


def _more(number: int) -> list[str]:
    return [f"  and {number} more"] if number > 0 else []


def _driver(status: Status) -> str:
    driver = status.driver
    if driver is None:
        return f"not known whether a driver runs: {status.problem}" if status.problem else "never started"
    process = f"process {driver['pid']} on {driver['host']}"
    if not status.alive:
        age = duration_text(time.time() - driver["at"])
        end = "ended" if driver["ended"] else "died; run the same command again to continue"
        return f"not running: {process} {end} ({age} ago)"
    stopping = ", stopping" if driver["stopping"] else ""
    return f"running{stopping}: {process}, {count(len(driver['running']), 'launch')}, {time_left(driver['left'])}"


def find(run: str) -> Status:
    """The status of a run given by its folder, its name under results/, or the URL of an object store."""
    if not object_store.is_url(run):
        return read(run_files.run_folder(run))
    with tempfile.TemporaryDirectory() as folder:
        object_store.copy(run, Path(folder), only=lambda name: name in ("plan.jsonl", "status.json"))
        return read(Path(folder))._replace(log=f"{run}/deployments")

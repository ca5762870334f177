"""Weights & Biases: a run per trial in a group per sweep, from a process of its own that no trial waits for.

A tracking fault never fails a sweep: whatever goes wrong there, a hang or a crash of wandb included, is one warning.
Offline unless WANDB_API_KEY or a netrc login is there, or WANDB_MODE says otherwise; a server that cannot be reached
turns the rest of the sweep offline. The key goes from the environment to wandb and nowhere else.

The process runs this file as a script, so what it needs of ours is imported for type checking only.
"""

import contextlib
import json
import logging
import netrc
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from sweep.config import Tracking
    from sweep.records import Sample

log = logging.getLogger(__name__)

SERVER = "https://api.wandb.ai"
INIT_TIMEOUT = 20.0  # s to reach the server
CLOSE_TIMEOUT = 120.0  # s for uploading what is left
CONFIG = (
    *("trial_id", "deployment_id", "attempt", "experiment", "backend", "engine_version", "model", "workload", "load"),
    *("batch_size", "concurrency", "rate", "replicate", "seed", "accelerator", "gpu_count", "dtype", "batch_form"),
    *("price_per_hour", "config", "commit", "versions", "hardware", "driver", "started_at", "ended_at"),
)
"""The columns of a trials row that say what was run; the others are what came of it."""


class Tracker:
    """Sends finished trials to the tracking process, without ever waiting for it."""

    def __init__(self, config: "Tracking", group: str, folder: Path, init_timeout: float = INIT_TIMEOUT) -> None:
        """`group` is the sweep's name; runs and the log of the process go to `folder`."""
        self._settings = {
            "project": config.project,
            "entity": config.entity,
            "group": group,
            "folder": str(folder),
            "init_timeout": init_timeout,
        }
        self._enabled = config.kind == "wandb"
        self._folder = folder
        self._messages: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._threads: list[threading.Thread] = []
        self._warned = False

    def log_trial(self, row: Mapping[str, Any], telemetry: Sequence["Sample"]) -> None:
        """Track a trial: its row, and its telemetry as history. Returns at once."""
        if not self._enabled:
            return
        try:
            if self._process is None:
                self._start()
            self._messages.put(json.dumps({"row": dict(row), "telemetry": list(telemetry)}, default=str))
        except (OSError, TypeError, ValueError) as error:
            self._warn(f"{type(error).__name__}: {error}")

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Let the process finish what it was given, `timeout` s at most."""
        if self._process is None:
            return
        self._messages.put(None)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._warn(f"not finished {timeout:g} s after the last trial")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        self._process = None

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "tracking.log").open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],  # -P: this folder's modules must not shadow anyone's
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # an interrupt of the sweep lets it finish
            )
        self._messages.put(json.dumps(self._settings))
        for target in (self._write, self._read):
            thread = threading.Thread(target=target, args=(self._process,), name="tracking", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _write(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # why it broke is told by _read
            while (message := self._messages.get()) is not None:
                pipe.write(message + "\n")
                pipe.flush()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        """Each line that the process says is a fault."""
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                self._warn(line.strip())
        status = process.wait()
        if status != 0:
            self._warn(f"its process ended with status {status}")

    def _warn(self, fault: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("tracking: %s; the sweep goes on (see %s)", fault, self._folder / "tracking.log")


# In the process ------------------------------------------------------------------------------------------------------


def main(messages: Iterable[str], say: IO[str]) -> None:
    """Track the trials of `messages`, the first of which is the settings; say each fault in one line."""
    lines = iter(messages)
    settings = json.loads(next(lines))
    modes = deque(["online", "offline"] if has_login() else ["offline"])
    if os.environ.get("WANDB_MODE"):
        modes.appendleft(os.environ["WANDB_MODE"])
    for line in lines:
        while not tracked(settings, modes[0], json.loads(line), say) and len(modes) > 1:
            modes.popleft()  # offline nothing is lost: `wandb sync` can send it later


def tracked(settings: Mapping[str, Any], mode: str, message: Mapping[str, Any], say: IO[str]) -> bool:
    """Whether the trial is tracked; if not, the fault was said."""
    try:
        track(settings, mode, message["row"], message["telemetry"])
    except Exception as error:  # noqa: BLE001  the one place where a fault of tracking ends, whatever it is
        print(" ".join(f"{type(error).__name__}: {error}".split())[:300], file=say, flush=True)
        return False
    return True


def has_login() -> bool:
    """Whether wandb has a key for its server: in the environment, or in netrc. The key itself is left to wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            return netrc.netrc(path.expanduser()).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def track(settings: Mapping[str, Any], mode: Any, row: dict[str, Any], telemetry: list[list[Any]]) -> None:
    """One trial as one run: config, telemetry as history over the trial's time, the row's figures as summary."""
    import wandb  # slow to import, and only this process needs it

    folder = Path(settings["folder"])
    run = wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        group=settings["group"],
        name=run_name(row),
        job_type=row.get("backend"),
        tags=[str(row[key]) for key in ("backend", "workload", "outcome") if row.get(key)],
        config={key: plain(row[key]) for key in CONFIG if row.get(key) is not None},
        dir=folder.parent if folder.name == "wandb" else folder,  # wandb adds a folder of that name
        mode=mode,
        settings=wandb.Settings(
            init_timeout=settings["init_timeout"],
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,  # of this machine: the trial's own telemetry is what counts
            x_disable_meta=True,
            x_save_requirements=False,  # the engine's versions are in the config
        ),
    )
    try:
        run.define_metric("time", hidden=True)
        run.define_metric("*", step_metric="time")
        for point in history(telemetry):
            run.log(point)
        run.summary.update({key: value for key, value in row.items() if key not in CONFIG and value is not None})
    finally:
        run.finish(exit_code=0 if row.get("outcome") == "ok" else 1)


def run_name(row: Mapping[str, Any]) -> str:
    """A trial in a few words, e.g. `vllm qa batch 8 r0`."""
    size = next((row[key] for key in ("batch_size", "concurrency", "rate") if row.get(key) is not None), "")
    words = (row.get("backend"), row.get("workload"), row.get("load"), size, f"r{row.get('replicate')}")
    return " ".join(str(word) for word in words if word not in (None, ""))


def plain(value: Any) -> Any:
    """JSON columns (the resolved config, versions, hardware) as nested data, so that wandb can filter by their keys."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def history(telemetry: Iterable[Sequence[Any]]) -> list[dict[str, float]]:
    """Samples (time, series, value, device) as one mapping per reading; a device's series is `series/device`."""
    points: dict[float, dict[str, float]] = {}
    for time, series, value, device in telemetry:
        name = f"{series}/{device}" if device else series
        points.setdefault(round(time, 2), {})[name] = value
    return [{"time": time, **points[time]} for time in sorted(points)]


if __name__ == "__main__":
    own_stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever wandb prints goes to the log
    main(sys.stdin, own_stdout)

"""The tracking process: passes the sweep's trials to wandb. It runs as a script, so it imports no sweep modules.

It is offline unless WANDB_API_KEY, a netrc login or WANDB_MODE is set. If the server is unreachable, the rest of the
sweep is tracked offline. The key passes from the environment only to wandb.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from requests.utils import get_netrc_auth


def main(messages: Iterable[str], faults: IO[str]) -> None:
    """Track the trials in `messages`; the first message holds the settings. Print each fault on one line."""
    lines = iter(messages)
    settings = json.loads(next(lines))
    mode = chosen_mode()
    keep_destination(settings)
    for line in lines:
        if not tracked(settings, mode, json.loads(line), faults) and mode != "offline":
            mode = "offline"  # offline, no data are lost, since `wandb sync` can send them later
            tracked(settings, mode, json.loads(line), faults)


def chosen_mode() -> str:
    """Return WANDB_MODE. The default is online if there is a login, else offline."""
    return os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")


def keep_destination(settings: Mapping[str, Any]) -> None:
    """Store the destination of a folder's runs, for later uploads."""
    destination = {key: settings[key] for key in ("project", "entity")}
    (Path(settings["folder"]) / "destination.json").write_text(json.dumps(destination), encoding="utf-8")


def tracked(settings: Mapping[str, Any], mode: str, message: Mapping[str, Any], faults: IO[str]) -> bool:
    """Track a trial and return whether that succeeded. Print any fault."""
    try:
        track(settings, mode, message["run"], message["telemetry"])
    except Exception as error:  # noqa: BLE001  the one place where a fault of tracking ends, whatever it is
        print(" ".join(f"{type(error).__name__}: {error}".split())[:300], file=faults, flush=True)
        return False
    return True


def has_login() -> bool:
    """Return whether the environment or netrc has a key for wandb's server. Only wandb reads the key."""
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))


def track(
    settings: Mapping[str, Any], mode: Any, described: dict[str, Any], telemetry: Iterable[Sequence[Any]]
) -> None:
    """Log a trial as a W&B run: its config, its telemetry as history over time, and its results as summary.

    A trial retried in the same folder has the same id. Without `resume` it replaces the earlier run, on the server and
    when offline runs are synced in order.
    """
    run = begin_run(settings, mode, described)
    try:
        run.define_metric("time", hidden=True)
        run.define_metric("*", step_metric="time", summary="none")  # the last reading does not summarise a trial
        for point in history(telemetry):
            run.log(point)
        run.summary.update(described["summary"])
    finally:
        run.finish(exit_code=0 if described["ok"] else 1)


def begin_run(settings: Mapping[str, Any], mode: Any, described: Mapping[str, Any]) -> Any:
    """Begin a W&B run. A later run with the same id replaces it."""
    import wandb  # slow to import, and needed only for tracking

    folder = Path(settings["folder"])
    return wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        group=group(settings["group"], folder),
        id=f"{token(folder)}-{described['trial_id']}",
        name=described["name"],
        job_type=described["job_type"],
        tags=described["tags"],
        config=described["config"],
        dir=folder.parent if folder.name == "wandb" else folder,  # wandb adds a folder of that name
        mode=mode,
        settings=wandb.Settings(
            init_timeout=settings["init_timeout"],
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,  # statistics of this machine; the trial has its own telemetry
            x_disable_meta=True,
            x_save_requirements=False,  # the engine's versions are in the config
        ),
    )


def group(name: str, folder: Path) -> str:
    """Return the group of a run's trials. A different run of the same experiment forms a different group."""
    return f"{name} {token(folder)}"


def token(folder: Path) -> str:
    """Return the id prefix of this folder's runs, so that equal trials in other folders do not replace them.

    The folder stores it. If that file is removed, runs get new ids, as they must if the server deleted the old runs.
    """
    file = folder / "run-ids"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def history(telemetry: Iterable[Sequence[Any]]) -> list[dict[str, float]]:
    """Return samples (time, series, value, device) as one mapping per time; a device's series is `series/device`."""
    points: dict[float, dict[str, float]] = {}
    for time, series, value, device in telemetry:
        name = f"{series}/{device}" if device else series
        points.setdefault(round(time, 2), {})[name] = value
    return [{"time": time, **points[time]} for time in sorted(points)]


if __name__ == "__main__":
    own_stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # wandb's output goes to the log
    main(sys.stdin, own_stdout)

"""`sweep rerun`: runs rows again as they were recorded, and compares each with its earlier measurement."""

import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from analysis.compare.reproduction import FigureChange, Reproduction, figure_changes, finding
from sweep.base.config import (
    NOT_OF_A_ROW,
    POINT_GROUPS,
    ConfigError,
    FoundHardware,
    Hardware,
    Settings,
    cache_directory,
    slo_in_units,
    validate,
)
from sweep.base.options import ConfigPath
from sweep.base.whole_file import write_whole
from sweep.cli.run import Planned, execute_plan
from sweep.disk.run_files import RunPaths
from sweep.drive.output_folder import results_folder
from sweep.drive.planning_outages import plan_patiently
from sweep.drive.preflight import find_hardware, find_nodes, surroundings
from sweep.plan.command_line import is_point_key, parse_command_line
from sweep.plan.compose import Composition, compose_run
from sweep.plan.pending import REVISION, check_resolved
from sweep.plan.planning import make_plan
from sweep.rerun.capsule import Capsule
from sweep.rerun.circumstances import Difference, changed_circumstances, circumstances, difference_lines
from sweep.rerun.rows import opened_rows
from sweep.rerun.trust import unfamiliar_parts

FOLDER = Path("results") / "rerun"
VERDICTS = "rerun.json"  # file in the folder of a rerun
UNCERTAIN = 3  # exit status
DEFAULTS = ("cluster=inline", "tracking=none")  # defaults for a rerun: a single machine needs no Ray


class RerunVerdict(NamedTuple):
    """The result of comparing a row with a new measurement of its trial."""

    capsule: Capsule
    result: Reproduction
    reason: str
    changes: list[FigureChange]
    differences: list[Difference]

    def lines(self) -> list[str]:
        """Return the verdict as text: the values, the conclusion, and the circumstances that differ."""
        label = self.capsule.trial.get("label") or ""
        lines = [f"{self.capsule.capsule}  {label}", *(f"  {change.describe()}" for change in self.changes)]
        lines.append(f"  {self.result}" + (f" ({self.reason})" if self.reason else ""))
        names = list(difference_lines(self.differences))
        lines.append("  what differs: nothing that the rows record" if not names else "  not the same:")
        return lines + [f"    {name}" for name in names]

    def record(self) -> dict[str, Any]:
        """Return the verdict as JSON-able data, for scripts."""
        return {
            "trial": self.capsule.capsule,
            "label": self.capsule.trial.get("label"),
            "result": str(self.result),
            "reason": self.reason,
            "figures": [{**change._asdict(), "change": change.change} for change in self.changes],
            "differences": [difference._asdict() for difference in self.differences],
        }


def run_again(
    capsules: Sequence[Capsule],
    overrides: Sequence[str],
    out: str | None,
    command: Sequence[str],
    console: Console,
    config_dirs: Sequence[str] = (),
    trusted: bool = False,
) -> int:
    """Run the capsules again in a new folder, and print each verdict.

    Unless `trusted`, unfamiliar parts of the capsules are printed and rejected.

    Returns:
        0 if all are reproduced; 1 if any differs; 3 if none differs but some are uncertain; else the status of a run
        that did not finish.

    Raises ConfigError for capsules that cannot be run here; Halted for a lasting outage.
    """
    options = ConfigPath.of_user(config_dirs)
    planned = plan_patiently(
        lambda: plan_again(capsules, overrides, out, options, None if trusted else console),
        lambda: _settings_today(capsules, overrides, out, options),
    )
    status = execute_plan(planned, shlex.join(["sweep", "rerun", *command]))
    if status not in (0, 1) or planned.plan.settings.dry_run:
        return status
    rows = {_key(json.loads(row["config"]), row): row for row in opened_rows(planned.paths.out)}
    verdicts = [_verdict(capsule, rows[_key(_pinned(capsule), capsule.trial)]) for capsule in capsules]
    write_whole(planned.paths.out / VERDICTS, json.dumps([verdict.record() for verdict in verdicts], indent=1) + "\n")
    for verdict in verdicts:
        for line in verdict.lines():
            console.print(line, markup=False, soft_wrap=True)
    results = {verdict.result for verdict in verdicts}
    return 1 if Reproduction.DIFFERS in results else UNCERTAIN if Reproduction.UNKNOWN in results else 0


def _key(config: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    return json.dumps([trial["replicate"], trial["seed"], config], sort_keys=True)


def _verdict(capsule: Capsule, row: Mapping[str, Any]) -> RerunVerdict:
    changed = changed_circumstances(capsule.circumstances, circumstances(row))
    if row["outcome"] != "ok":
        reason = f"the trial is now {row['outcome']}: {row.get('reason')}"
        return RerunVerdict(capsule, Reproduction.DIFFERS, reason, [], changed)
    if not changed and row["trial_id"] != capsule.trial["trial_id"] and capsule.config == _pinned(capsule):
        changed = [Difference("id of the trial: a default or sweep's code", capsule.trial["trial_id"], row["trial_id"])]
    changes = figure_changes(capsule.figures, row, capsule.noise)
    return RerunVerdict(capsule, *finding(changes), changes, changed)


def plan_again(
    capsules: Sequence[Capsule],
    overrides: Sequence[str],
    out: str | None,
    options: ConfigPath,
    distrusting: Console | None = None,
) -> Planned:
    """Plan the trials of capsules on this machine, with their configurations, seeds and lockfiles.

    With a console, unfamiliar parts are printed there and rejected. Raises ConfigError for capsules that cannot be
    planned here or together; Outage if an index or a hub does not answer.
    """
    settings = _settings_today(capsules, overrides, out, options)
    if distrusting is not None and (parts := unfamiliar_parts(capsules, options, cache_directory(settings.cache_dir))):
        for line in parts:
            distrusting.print(f"  {line}", markup=False, soft_wrap=True)
        raise ConfigError(
            f"{capsules[0].capsule}: the {len(parts)} parts above can run code, and this machine does not have them; "
            "read them, then add --trust"
        )
    nodes, paths = find_nodes(settings), RunPaths(results_folder(settings))
    facts = surroundings(settings, nodes, options, _common_locks(capsules), pinned=True)
    composition = Composition(
        settings,
        [_pinned(capsule) for capsule in capsules],
        [capsule.coordinates for capsule in capsules],
        options=options,
        seeds=[{capsule.trial["replicate"]: capsule.trial["seed"]} for capsule in capsules],
    )
    plan = make_plan(composition, facts)
    check_resolved(plan)
    for deployment in plan.deployments:
        if deployment.unavailable:
            raise ConfigError(f"{capsules[0].capsule}: {deployment.describe()}: {deployment.unavailable}")
    return Planned(plan, nodes, paths, composition, facts)


def _settings_today(
    capsules: Sequence[Capsule], overrides: Sequence[str], out: str | None, options: ConfigPath
) -> Settings:
    """Return the settings of the rows' run, with today's settings for where and how to run."""
    capsule, typed = capsules[0], parse_command_line(overrides).typed
    if key := next(filter(is_point_key, typed), None):
        groups = ", ".join(POINT_GROUPS)
        raise ConfigError(f"{key}={typed[key]}: taken from the row; expected keys of a run, none of {groups}")
    if stranger := next((each for each in capsules if each.settings != capsule.settings), None):
        names = f"{stranger.capsule} and {capsule.capsule}"
        raise ConfigError(f"{names} were measured with different settings; rerun them one at a time")
    defaults = [each for each in DEFAULTS if each.partition("=")[0] not in typed]
    find = functools.partial(find_hardware, options=options)
    today = compose_run([*defaults, *overrides], find, options).settings  # its model and workload are not the rows'
    present = {"hardware", "assumed", *(key.partition(".")[0] for key in typed)}
    foreign = NOT_OF_A_ROW - {"slo", "percentiles", "relaunch"}  # where and how to run: never taken from a capsule
    recorded = {key: setting for key, setting in capsule.settings.items() if key not in present | foreign}
    recorded |= {"slo": slo_in_units(slo)} if (slo := recorded.get("slo")) else {}
    recorded["replicates"] = len({each.trial["replicate"] for each in capsules})
    name = str(capsule.trial.get("experiment") or "rerun")
    folder = out or (today.out if "out" in typed else str(_new_folder(capsules)))
    hardware = today.hardware if "hardware" in typed else _hardware(capsule, today.hardware)
    return validate(Settings, {**today.model_dump(), **recorded, "name": name, "out": folder, "hardware": hardware}, "")


def _hardware(capsule: Capsule, present: Hardware) -> Hardware:
    """Return the row's profile, or this GPU's profile if it differs; a CPU and a GPU cannot replace each other."""
    recorded = capsule.settings.get("hardware")
    if recorded is None:
        return present
    profile_type = FoundHardware if capsule.settings.get("assumed") else Hardware
    profile = validate(profile_type, recorded, "capsule: hardware")
    if profile.platform != present.platform and capsule.config["backend"].get("url") is None:
        platform = {"cpu": "a CPU", "cuda": "a GPU"}
        raise ConfigError(
            f"{capsule.capsule}: measured on {platform[profile.platform]} ({profile.name}), but this machine has "
            f"{platform[present.platform]} ({present.name}); expected the same platform, e.g. hardware={profile.name}"
        )
    same_gpu = not profile.matches or profile.name == present.name
    return profile if profile.platform == present.platform and same_gpu else present


def _new_folder(capsules: Sequence[Capsule]) -> Path:
    trial = capsules[0].trial
    stem = f"{trial.get('experiment')}-{trial['trial_id']}" if len(capsules) == 1 else f"{trial.get('experiment')}"
    numbered = [FOLDER / stem, *(FOLDER / f"{stem}-{number}" for number in range(2, 10_000))]
    return next(path for path in numbered if not path.exists())


def _common_locks(capsules: Sequence[Capsule]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for each in capsules:
        for file, lock in each.lock_texts().items():
            if texts.setdefault(file, lock) != lock:
                raise ConfigError(f"{each.capsule}: its lockfile {file} differs from the others; rerun one by one")
    return texts


def _pinned(capsule: Capsule) -> dict[str, Any]:
    config = dict(capsule.config)
    for group, key in (("model", "repo"), ("workload", "dataset")):
        commits = dict(REVISION.findall(capsule.digests.get(group, "")))
        if commit := commits.get(config[group].get(key)):
            config[group] = {**config[group], "revision": commit}
    return config

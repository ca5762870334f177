"""The circumstances of a measurement as recorded in its row, and the differences between two measurements.

A circumstance has a readable name (`flag max-num-seqs`, `version of torch`, `driver`) and a value. Ports, folders and
times differ between any two launches of a command, so they are not circumstances.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sweep.base.config import shortened
from sweep.base.setting_labels import dotted

Circumstances = dict[str, Any]

ROW_COLUMNS = {  # columns of a row, by readable names
    "protocol": "protocol version",
    "commit": "code commit",
    "engine_version": "engine version",
    "dtype": "number format",
    "driver": "driver",
    "accelerator": "accelerator",
    "gpu_count": "GPUs",
    "replicas": "replicas",
    "max_model_len": "context",
    "num_requests": "requests",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "token_source": "token counts by",
    "batch_form": "batches sent as",
    "caches_reset": "caches reset",
    "client_stamp_source": "time stamps by",
    "client_processes": "client processes",
}
DIGEST_NAMES = {
    "model": "weights",
    "draft": "weights of the draft model",
    "workload": "prompts",
    "load": "arrivals file",
    "backend": "code of the engine's host",
    "lock": "lock",
}
MACHINE_FACTS = {
    "cpu": "processor",
    "cores": "cores",
    "gpus": "GPU names",
    "capability": "compute capability",
    "glibc": "glibc",
    "kernel": "kernel",
    "node": "machine",
}
OF_A_LAUNCH = ("--port", "--host")  # flags whose values differ for each launch
# Engine facts to skip: measurements, paths, and facts listed separately here.
NOT_COMPARED = {
    *("engine_version", "dtype", "command", "flags", "environ", "startup_seconds", "cold_ttft", "log", "reachable_by"),
    *("below_gate", "replicas", "coarser_format"),  # the last follows from quantization and flags
}
ANSWER_FACTS = ("agreement", "quality")  # prefixes of facts about an engine's answers, which are results
NAMED_KINDS = ("flag", "environment variable", "engine's", "version of", "setting")  # kinds that are followed by a name
LATER_KINDS = {"environment variable", "setting"}  # kinds that the oldest rows lack
OF_THE_RUN = ("hardware", "assumed", "relaunch")  # settings about other trials of the run, or listed above
FOREIGN, LOAD_AVERAGE = "cores taken by other processes", "load average"
# Varies a little with every measurement: share of the engine's cores, and runnable processes.
LEAST_DIFFERENCES = {FOREIGN: 0.05, LOAD_AVERAGE: 4.0}
BYTES_OF_GIB = 2**30
MOST_OF_A_KIND = 12  # maximum listed per kind, e.g. versions; further differences are only counted


class Difference(NamedTuple):
    """A circumstance that differs between two measurements; None if a measurement lacks it."""

    name: str
    before: Any
    after: Any

    def describe(self) -> str:
        """Return `driver: 570.86 → 580.12`."""
        return f"{self.name}: {_shown_value(self.before)} → {_shown_value(self.after)}"


def circumstances(row: Mapping[str, Any]) -> Circumstances:
    """Return all recorded circumstances of a row's measurement, except its configuration, which is run again."""
    facts, machine = _parsed(row, "engine_facts"), _parsed(row, "hardware")
    recorded = {title: row.get(column) for column, title in ROW_COLUMNS.items()}
    recorded |= {f"flag {title}": fact for title, fact in _flags(facts.get("command") or ()).items()}
    recorded |= {f"environment variable {title}": fact for title, fact in (facts.get("environ") or {}).items()}
    compared = {key: facts[key] for key in facts if key not in NOT_COMPARED and not key.startswith(ANSWER_FACTS)}
    recorded |= {f"engine's {title}": fact for title, fact in dotted(_without_folders(compared)).items()}
    recorded |= {title: machine.get(fact) for fact, title in MACHINE_FACTS.items()}
    if machine.get("memory_bytes"):
        recorded["memory"] = f"{machine['memory_bytes'] / BYTES_OF_GIB:.1f} GiB"
    recorded |= {DIGEST_NAMES.get(title, f"files of {title}"): fact for title, fact in _parsed(row, "digests").items()}
    recorded |= {f"version of {title}": fact for title, fact in _parsed(row, "versions").items()}
    settings = {title: fact for title, fact in _parsed(row, "settings").items() if title not in OF_THE_RUN}
    recorded |= {f"setting {title}": fact for title, fact in dotted(settings).items()}
    recorded["setting of the run"] = "recorded" if row.get("settings") else None  # empty if all are defaults
    recorded["prompt headers"] = "salted" if row.get("prompt_salt") else None
    recorded["place in its launch"] = row.get("place")
    recorded[FOREIGN] = row.get("foreign_cpu_share")
    recorded[LOAD_AVERAGE] = machine.get("load_average")
    return {title: fact for title, fact in recorded.items() if fact is not None}


def changed_circumstances(before: Circumstances, after: Circumstances) -> list[Difference]:
    """Return the differences in circumstances between two measurements, in the order of the first.

    Kinds that an older row does not record at all are skipped.
    """
    kinds = [{_kind(title) for title in measurement} for measurement in (before, after)]
    silent = LATER_KINDS - (kinds[0] & kinds[1])
    names = [title for title in dict.fromkeys([*before, *after]) if _kind(title) not in silent]
    pairs = (Difference(title, before.get(title), after.get(title)) for title in names)
    return [pair for pair in pairs if not _equal(pair)]


def _kind(title: str) -> str | None:
    return next((prefix for prefix in NAMED_KINDS if title.startswith(f"{prefix} ")), None)


def _equal(pair: Difference) -> bool:
    if pair.name in LEAST_DIFFERENCES:
        before, after = (float(amount or 0.0) for amount in (pair.before, pair.after))
        return abs(before - after) <= LEAST_DIFFERENCES[pair.name]
    return bool(pair.before == pair.after)


def difference_lines(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield a line for each difference; if one kind has many, list the first and count the rest."""
    groups: dict[str, list[Difference]] = {}
    for difference in differences:
        groups.setdefault(_kind(difference.name) or difference.name, []).append(difference)
    for subject, group in groups.items():
        yield from (difference.describe() for difference in group[:MOST_OF_A_KIND])
        if len(group) > MOST_OF_A_KIND:
            yield f"{subject}: {len(group) - MOST_OF_A_KIND} more"


def _parsed(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    document = row.get(column)
    return dict(json.loads(document)) if isinstance(document, str) else {}  # from an older version


def _flags(command: Sequence[str]) -> dict[str, Any]:
    """Return a command line's flags by name, with JSON values split into settings; `program` is the executable."""
    flags: dict[str, Any] = {}
    program: list[str] = []
    words = list(command)
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if word.startswith("--"):
            flag, equals, setting = word.partition("=")
            follows = index + 1 < len(words) and not words[index + 1].startswith("--")
            flags[flag] = setting if equals else (words[index + 1] if follows else True)
        elif not (before.startswith("--") and "=" not in before):
            program.append(word)
    named = {flag.lstrip("-"): _value(setting) for flag, setting in flags.items() if flag not in OF_A_LAUNCH}
    mapping = _without_folders({**named, "program": " ".join(_last_part(word) for word in program)})
    return dotted(mapping)


def _value(setting: Any) -> Any:
    if isinstance(setting, str) and setting.startswith("{"):
        try:
            return json.loads(setting)
        except ValueError:
            return setting
    return setting


def _without_folders(fact: Any) -> Any:
    """Return the fact with only the last part of every path, since folders differ between machines."""
    if isinstance(fact, Mapping):
        return {key: _without_folders(inner) for key, inner in fact.items()}
    if isinstance(fact, list):
        return [_without_folders(inner) for inner in fact]
    return _last_part(fact) if isinstance(fact, str) else fact


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/")) if os.path.isabs(path) else path


def _shown_value(fact: Any) -> str:
    if isinstance(fact, float):
        return f"{fact:.3g}"
    return "none" if fact is None or fact == [] else shortened(fact)

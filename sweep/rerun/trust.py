"""The parts of a capsule that could run foreign code here: they are printed, and run only with --trust."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import FLAG_KEYS, Backend
from backends.prepare import locks
from sweep.base.config import POINT_GROUPS, locate, shortened
from sweep.base.options import ConfigPath
from sweep.rerun.capsule import Capsule

# Keys of a backend: the program, the receiver of its API key, and settings besides its flags.
STARTING_KEYS = ("env", "environ", "url", "api_key_env", "options", "properties", "scheduler", "cpu_scheduler")


def unfamiliar_parts(capsules: Sequence[Capsule], options: ConfigPath, cache_dir: Path) -> list[str]:
    """Return the capsules' lockfiles, classes, keys and flags that this machine's options and lockfiles lack."""
    folders = [*locks.committed(options), locks.remembered(cache_dir)]
    local = [path.read_text() for folder in folders for path in folder.glob("*.txt")]
    digests, pins = set(map(locks.lock_digest, local)), {pin for lock in local for pin in lock.splitlines()}
    parts: dict[str, None] = {}
    for capsule in capsules:
        for file, lock in capsule.lock_texts().items():
            if locks.lock_digest(lock) not in digests:
                new = [pin for pin in lock.splitlines() if pin not in pins and not pin.startswith("#")]
                parts[f"lock {file}: {', '.join(new) or 'a new combination of known pins'}"] = None
        parts |= dict.fromkeys(_unfamiliar_settings(capsule.config, options))
    return list(parts)


def _unfamiliar_settings(config: Mapping[str, Any], options: ConfigPath) -> Iterable[str]:
    for group in filter(config.get, POINT_GROUPS):
        target = str(config[group].get("_target_"))
        choices = [options.load(group, choice) for choice in options.choices(group)]
        local = [choice for choice in choices if choice["_target_"] == target]
        if not local:
            yield f"{group}._target_={shortened(target)}"
        elif group == "backend":
            yield from _unfamiliar_keys(config[group], local)


def _unfamiliar_keys(backend: Mapping[str, Any], local: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    kind = locate(backend["_target_"], "backend")
    assert issubclass(kind, Backend)
    for key in STARTING_KEYS:
        if backend.get(key) and all(choice.get(key) != backend[key] for choice in local):
            yield f"backend.{key}={shortened(backend[key])}"
    table = kind.flag_rules.table
    for key in FLAG_KEYS:
        for flag, setting in (backend.get(key) or {}).items():
            is_text = table.takes_text(flag) if table else not isinstance(setting, bool | int | float)
            if is_text and all((choice.get(key) or {}).get(flag) != setting for choice in local):
                yield f"backend.{key}.{flag}={shortened(setting)}"

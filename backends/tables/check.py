"""A user's engine flags against the tables: those that an adapter sets itself, and those that the engine has not."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.base import FLAG_KEYS, Backend, EnvironmentSpec
from backends.tables.table import EngineTable, load


def refused(backend: Backend, environment: EnvironmentSpec | None) -> str | None:
    """Return why the engine would not start with these flags, in one line; None if it would, as far as is known.

    Of another version than the table's nothing is refused: `warnings` says what is not in the table.
    """
    table = table_of(backend, environment)
    if table is None or not backend.launches or not _same_version(environment, table):
        return None
    return next(_problems(backend, table), None)


def warnings(backend: Backend, environment: EnvironmentSpec | None) -> list[str]:
    """Return what the table says of flags for an engine of another version, which may take them all the same."""
    table = table_of(backend, environment)
    if table is None or not backend.launches or _same_version(environment, table):
        return []
    version = engine_version(environment, table) or "of an unknown version"
    return [f"{problem}; the engine here is {version}, which may differ" for problem in _problems(backend, table)]


def table_of(backend: Backend, environment: EnvironmentSpec | None) -> EngineTable | None:
    """Return the table of the engine that an environment has; of several, the first if it has none of them."""
    tables = [load(name) for name in backend.tables]
    present = {pin.partition("==")[0] for pin in _pins(environment)}
    return next((table for table in tables if present & set(table.distributions)), tables[0] if tables else None)


def engine_version(environment: EnvironmentSpec | None, table: EngineTable) -> str | None:
    """Return the version of the engine that will run; None where it is not known before the launch."""
    if environment is None:
        return table.version  # none can be composed here: the pinned one is meant
    if environment.image:
        # Not the port of its registry, nor the digits of its digest.
        tag = re.search(r":v?(\d[\w.]*)[^/:]*$", environment.image.partition("@")[0])
        return tag[1] if tag else None
    versions = dict(pin.split("==", 1) for pin in _pins(environment) if "==" in pin)
    if environment.python:
        versions |= _installed(environment.python)
    return next((versions[name].partition("+")[0] for name in table.distributions if name in versions), None)


def _same_version(environment: EnvironmentSpec | None, table: EngineTable) -> bool:
    return engine_version(environment, table) == table.version


def _pins(environment: EnvironmentSpec | None) -> list[str]:
    if environment is None:
        return []
    pins = environment.lock.pins if environment.lock else environment.requirements
    return [*pins, *([environment.source.sdist] if environment.source else [])]


def _installed(python: str) -> dict[str, str]:
    """Return the distributions beside an interpreter of the user's own, by the names of their folders."""
    folder = Path(shutil.which(python) or python).parent.parent
    names = [path.name.removesuffix(".dist-info") for path in folder.glob("lib/python*/site-packages/*.dist-info")]
    return {name.replace("_", "-").lower(): version for name, _, version in (each.partition("-") for each in names)}


def _problems(backend: Backend, table: EngineTable) -> Iterator[str]:
    for group in FLAG_KEYS:
        flags: dict[str, Any] = getattr(backend, group)
        for name, value in flags.items():
            if problem := table.problem(name, value):
                yield f"backend.{group}.{name}={value}: {problem}"

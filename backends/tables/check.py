"""Checks a user's engine flags against the engine's table: unknown flags and rejected values."""

import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from backends.base import FLAG_KEYS, Backend, EnvironmentSpec
from backends.prepare.programs import distributions
from backends.tables.table import EngineTable, load


def refused(backend: Backend, environment: EnvironmentSpec | None) -> str | None:
    """Return in one line why the table's version of the engine would reject these flags; None if it would not."""
    same = (each for each in _tables_of_fields(backend, environment) if _same_version(environment, each[0]))
    return next((problem for table, groups in same for problem in _problems(backend, table, groups)), None)


def warnings(backend: Backend, environment: EnvironmentSpec | None) -> list[str]:
    """Return the table's objections to flags as warnings, if the engine's version differs and may accept them."""
    objections = []
    for table, groups in _tables_of_fields(backend, environment):
        if not _same_version(environment, table):
            version = engine_version(environment, table) or "of an unknown version"
            problems = _problems(backend, table, groups)
            objections += [f"{problem}; the engine here is {version}, which may differ" for problem in problems]
    return objections


def _tables_of_fields(
    backend: Backend, environment: EnvironmentSpec | None
) -> Iterator[tuple[EngineTable, Iterable[str]]]:
    """Yield the tables of a launched engine, each with the backend's fields that it applies to."""
    if backend.launches and (table := table_of(backend, environment)):
        yield table, FLAG_KEYS
    for key, name in backend.flag_rules.option_tables.items():
        yield load(name), (key,)


def table_of(backend: Backend, environment: EnvironmentSpec | None) -> EngineTable | None:
    """Return the table for the engine and version in an environment; the first table if none matches."""
    tables = [load(name) for name in backend.flag_rules.tables]
    present = {pin.partition("==")[0] for pin in _pins(environment)}
    of_engine = [table for table in tables if present & set(table.distributions)] or tables
    of_version = [table for table in of_engine if _same_version(environment, table)]
    return next(iter(of_version or of_engine), None)


def engine_version(environment: EnvironmentSpec | None, table: EngineTable) -> str | None:
    """Return the version of the engine that will run; None if it is unknown before the launch."""
    if environment is None:
        return table.version  # no environment can be composed in this process, so assume the pinned version
    if environment.image:
        # The pattern must match neither the registry's port nor the digest's digits.
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
    """Return the versions of the distributions installed for the user's interpreter, from their folders' names."""
    names = [path.stem for path in distributions(shutil.which(python) or python)]
    parts = (name.split("-") for name in names if "-" in name)  # some of Debian's folders have no version
    return {name.replace("_", "-").lower(): version for name, version, *_ in parts}


def _problems(backend: Backend, table: EngineTable, groups: Iterable[str]) -> Iterator[str]:
    for group in groups:
        flags: dict[str, Any] = getattr(backend, group)
        for name, value in flags.items():
            if problem := table.problem(name, value):
                yield f"backend.{group}.{name}={value}: {problem}"

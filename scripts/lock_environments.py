"""Lock the project's environments: `python scripts/lock_environments.py [NAME...]` writes conf/environment/locks.

Only locks that the package index alone resolves can be committed. If pip has other sources, disable them
(PIP_CONFIG_FILE=/dev/null). An environment keeps its lock until its requirements change, and then keeps the versions
that still fit. With --renew it gets the newest versions.
"""

import argparse
import sys

from backends.base import EnvironmentChoice, EnvironmentSpec
from backends.prepare import environments, locks
from backends.prepare.uv import EnvironmentFailed
from sweep.base.config import cache_directory
from sweep.base.options import ConfigPath

PYTHONS = ("3.11", "3.12", "3.13")


def variants(name: str) -> list[EnvironmentSpec]:
    """Yield the environment for each Python, plain and with each of its optional features."""
    plain = environments.resolve(EnvironmentChoice(cpu=name), "cpu")
    features = ConfigPath().load("environment", name).get("optional", {})
    specs = [plain, *(environments.resolve(EnvironmentChoice(cpu=name), "cpu", features=[each]) for each in features)]
    pythons = [plain.python_version] if plain.python_version else PYTHONS
    return [spec.model_copy(update={"python_version": python}) for spec in specs for python in pythons]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--renew", action="store_true")
    options = parser.parse_args()
    folder, status = locks.committed()[-1], 0
    folder.mkdir(exist_ok=True)
    for name in options.names or ConfigPath().choices("environment"):
        for spec in variants(name):
            if not options.renew and not locks.needed(locks.with_lock(spec, folder)):
                continue
            file = folder / locks.file_name(spec)
            pins = file.read_text().splitlines()[1:] if file.is_file() and not options.renew else []
            try:
                file.write_text(locks.text(locks.resolve_lock(spec, cache_directory(None), print, pins)))
            except EnvironmentFailed as error:
                print(f"not locked: {error}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

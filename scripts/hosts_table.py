"""Make docs/measurements/hosts.md: what would be installed on nodes with each driver and GPU, or why nothing can be.

PYTHONPATH=. python scripts/hosts_table.py write it anew
"""

import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from backends import installed
from backends.prepare.fit import LEAST_DRIVER
from sweep.base.config import ROOT

DOCUMENT = ROOT / "docs" / "measurements" / "hosts.md"
DRIVERS, CAPABILITIES, PYTHON = ("550", "570", "580"), ("7.5", "8.0", "8.9", "9.0"), "3.11"
HEAD = f"""\
# What would be installed on which node

Made by `python scripts/hosts_table.py`, which asks `sweep backends --on driver=550,capability=8.9,python={PYTHON}` for
each of {len(DRIVERS)} drivers and {len(CAPABILITIES)} compute capabilities (a T4 has 7.5, an A100 8.0, an L4 8.9,
an H100 9.0).

The nodes are emulated: they are on Linux, with Python {PYTHON} and every program that an environment may need (`nvcc`
too); nothing is fetched for it. CUDA 13 runs from driver {LEAST_DRIVER[13]} on. `no:` is the line with which a plan
makes the engine's trials `unavailable`. What an environment for CUDA 12 is taken instead of is left out.

| backend | driver | capability | what would be installed, or why not |
| --- | --- | --- | --- |
"""


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield backend, driver, capabilities and the answer. Capabilities with equal answers share a row."""
    with tempfile.TemporaryDirectory() as cache:  # ignores locks that this machine has resolved earlier
        for name in installed.names():
            backend = installed.configured(name)
            if not backend.launches or backend.env.python:
                continue
            for driver in DRIVERS:
                answers = []
                for capability in CAPABILITIES:
                    host = installed.host_like(f"driver={driver},capability={capability},python={PYTHON}")
                    plan, reason = installed.planned(backend, host, Path(cache))
                    answers.append((plan.partition(", instead of")[0] or f"no: {reason}", capability))
                for answer, group in groupby(answers, key=lambda each: each[0]):
                    yield name, driver, ", ".join(capability for _, capability in group), answer


def document() -> str:
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


if __name__ == "__main__":
    DOCUMENT.write_text(document())

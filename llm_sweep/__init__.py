"""The wheel's only import package: `llm_sweep.open(RUN)`, `from llm_sweep import analysis` and the `sweep` command.

All code imports `sweep`, `backends` and `analysis`, but other projects own these names on the package index. So these
three folders and conf/ are inside this package in the wheel, and next to it in a checkout. Importing this package puts
their parent folder first on the import path and makes the three packages its attributes.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("sweep", "backends", "analysis")
_HERE = Path(__file__).resolve().parent
HOLDER = _HERE if (_HERE / "sweep").is_dir() else _HERE.parent  # holds the three packages and conf/
__path__.clear()  # no submodules: `llm_sweep.analysis` would be a second copy of `analysis`


def __getattr__(name: str) -> Any:
    if name == "open":
        return importlib.import_module("analysis.report.notebook").opened_run
    if name in PACKAGES:
        return importlib.import_module(name)
    raise AttributeError(f"llm_sweep has no {name!r}; it has open, {', '.join(PACKAGES)}")


def _make_importable() -> None:
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        folders = list(getattr(loaded, "__path__", ()))
        if loaded is not None and HOLDER not in [Path(folder).resolve().parent for folder in folders]:
            origin = getattr(loaded, "__file__", None) or ", ".join(folders) or "nowhere"
            raise ImportError(
                f"llm_sweep: another package named {name!r} is already imported, from {origin}; import llm_sweep in a "
                f"process without that package"
            )
    sys.path.insert(0, str(HOLDER))


def main() -> int:
    """Run the `sweep` command and return its exit status."""
    for name in PACKAGES:
        folder = Path.cwd() / name
        replaces = (folder / "__init__.py").exists() or folder.with_suffix(".py").exists()
        if replaces and folder.resolve().parent != HOLDER:
            print(
                f"error: {folder}: a module of this name would replace sweep's own in the processes that sweep starts "
                f"here; run sweep in another folder",
                file=sys.stderr,
            )
            return 2
    from sweep.__main__ import main

    return main(sys.argv[1:])


_make_importable()

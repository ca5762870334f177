"""The one import package of the wheel: `from llm_sweep import analysis`, and the `sweep` command.

All code imports `sweep`, `backends` and `analysis`, which are other projects' names on the package index. In the wheel
those three folders and conf/ lie inside this one, in a checkout beside it; importing this package puts the folder that
holds them in front of the import path, and makes `llm_sweep.analysis` another name of the module `analysis`.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PACKAGES = ("sweep", "backends", "analysis")
_HERE = Path(__file__).resolve().parent
HOLDER = _HERE if (_HERE / "sweep").is_dir() else _HERE.parent  # of the three packages and conf/


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `llm_sweep.analysis` as `analysis`, so that no module is loaded twice."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != __name__ or name.partition(".")[0] not in PACKAGES:
            return None
        if name not in PACKAGES:
            raise ModuleNotFoundError(f"{fullname}: its name is {name}, after `import {package}`", name=fullname)
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.partition(".")[2])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state  # the import system has just replaced it by the alias's


def _make_importable() -> None:
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        folders = list(getattr(loaded, "__path__", ()))
        if loaded is not None and HOLDER not in [Path(folder).resolve().parent for folder in folders]:
            origin = getattr(loaded, "__file__", None) or ", ".join(folders) or "nowhere"
            raise ImportError(
                f"llm_sweep: another package named {name!r} is already imported, from {origin}; import llm_sweep in a "
                f"process without it"
            )
    sys.path.insert(0, str(HOLDER))
    sys.meta_path.insert(0, _Alias())


def main() -> int:
    """Run the `sweep` command; its exit status."""
    for name in PACKAGES:
        folder = Path.cwd() / name
        if (folder / "__init__.py").exists() and folder.resolve().parent != HOLDER:
            print(
                f"error: {folder}: a package of this name would replace sweep's own in the processes that sweep starts "
                f"here; run it in another folder",
                file=sys.stderr,
            )
            return 2
    from sweep.__main__ import main

    return main(sys.argv[1:])


_make_importable()

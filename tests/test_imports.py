"""The rooms: who may import whom, how many files one has, which test is a module's. A rule is a test."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sweep", "backends", "analysis", "llm_sweep", "benchmarks")
BASIS = {"sweep.base", "sweep.drive.policy"}  # the ground, and what all ask who meet a failure: it imports that alone
MAY_IMPORT: dict[str, set[str]] = {
    "sweep.base": set(),  # the ground: everybody's, and it imports nothing of ours
    "sweep.drive.policy": {"sweep.base"},
    # Each room may import itself, and the rooms named here.
    "sweep.numbers": BASIS,
    "sweep.disk": BASIS | {"sweep.numbers"},
    "sweep.client": BASIS | {"sweep.numbers"},
    "sweep.inputs": BASIS | {"backends", "sweep.client.modes"},  # a load is turned into its mode
    "sweep.node": BASIS
    | {"sweep.gateway", "sweep.numbers", "sweep.disk", "sweep.client", "sweep.inputs", "sweep.plan", "backends"}
    | {"sweep.search"},  # a launch computes its next probe itself
    "sweep.gateway.settings": BASIS,  # what a plan knows of it
    "sweep.gateway": BASIS
    | {"sweep.inputs.tokenizer", "sweep.client.wire", "backends"},  # in front of engines, or launched beside one
    "sweep.plan": BASIS | {"sweep.gateway.settings", "sweep.numbers", "sweep.disk", "sweep.inputs", "backends"},
    "sweep.search": BASIS | {"sweep.numbers", "sweep.disk", "sweep.inputs", "sweep.plan"},
    "sweep.cluster": BASIS | {"sweep.disk", "sweep.plan", "sweep.node", "backends"},
    "sweep.drive": BASIS
    | {"sweep.client.wire", "sweep.disk", "sweep.inputs", "sweep.plan", "sweep.node", "sweep.cluster", "backends"},
    "sweep.rerun": BASIS  # one row's run, judged by the spread of its run
    | {"sweep.cli.run", "sweep.disk", "sweep.drive", "sweep.plan", "analysis", "backends"},
    "sweep.cli": {"sweep", "analysis", "backends"},  # the commands: a run ends with its report
    "sweep.__main__": BASIS | {"sweep.cli"},
    "sweep": set(),
    "backends": BASIS,  # shared types, options and whole files: one definition for both
    "backends.simulated_server": {"sweep.base.clock"},  # it reads the kernel's stamps as the client does
    "backends.host": set(),  # runs in the engine's environment
    "analysis": BASIS | {"sweep.numbers", "sweep.disk"},  # what the files hold and what their columns mean
    # From the files to figures of points: it renders nothing.
    "analysis.statistics": BASIS
    | {"sweep.numbers", "sweep.disk"}
    | {f"analysis.{name}" for name in ("headline", "load", "point_names", "quantities")},
    "analysis.explain": {  # from points to shares: no report, no figure
        "sweep.base",
        "analysis.headline",
        "analysis.load",
        "analysis.point_names",
        "analysis.quantities",
        "analysis.statistics",
        "analysis.table",
    },
    # What a run was made for, from what its tables are made of: it renders nothing.
    "analysis.answers": BASIS
    | {"sweep.numbers", "sweep.disk"}
    | {f"analysis.{name}" for name in ("compare", "headline", "point_names")}
    | {f"analysis.{name}" for name in ("quantities", "results", "statistics", "table")},
    "llm_sweep": {"sweep", "analysis"},  # the wheel's name for them
    "benchmarks": {"sweep", "analysis", "backends"},  # all of it is measured
}
SMALL = 60  # lines of a module that needs no test file of its name
TESTED_ELSEWHERE = ROOT / "tests" / "modules_tested_elsewhere.yaml"
MOST_FILES = 11  # of a room, beside its __init__
COLLECTIONS = {  # one file each, found by being there
    "backends": "engines",
    "sweep.numbers.quantities": "subjects of quantities",
    "analysis.figures": "figures",
    "benchmarks": "measurements",
}
FOLDER = re.compile(r"^    ( *)(\w+)/  +\w", re.MULTILINE)  # a line of the picture


def modules():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name):
    """The longest entry of MAY_IMPORT that a module belongs to."""
    return max((room for room in MAY_IMPORT if name == room or name.startswith(room + ".")), key=len)


def imports(path):
    """Every module that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


NAMES = {name_of(module) for module in modules()}
PACKAGES_OF_OURS = {name_of(path) for path in modules() if path.name == "__init__.py"}


def ours(path):
    """The modules of this project that a file imports, each by the name of its file."""
    return {name for name in imports(path) if name in NAMES and name not in PACKAGES_OF_OURS}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_follow_the_rooms(path):
    room = room_of(name_of(path))
    allowed = MAY_IMPORT[room] | {room}
    foreign = {name for name in ours(path) if not any(name == r or name.startswith(r + ".") for r in allowed)}
    assert not foreign, f"{name_of(path)} must not import {foreign}"


def test_no_modules_import_each_other():
    imported = {name_of(path): ours(path) - {name_of(path)} for path in modules()}
    TopologicalSorter(imported).prepare()  # CycleError names the modules of a circle


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_one_file_imports_ray(path):
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(path))
    assert not uses_ray or name_of(path) in ("sweep.cluster.ray_executor", "benchmarks.schedule")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_file_names_a_concrete_backend(path):
    concrete = {p.stem for p in (ROOT / "conf" / "backend").glob("*.yaml")}
    if not name_of(path).startswith("backends"):
        assert not {name.removeprefix("backends.") for name in ours(path) if name.startswith("backends.")} & concrete


def test_every_room_has_its_line_in_the_table():
    rooms = {name for name in PACKAGES_OF_OURS if name.startswith("sweep.") and name.count(".") == 1}
    assert rooms | set(PACKAGES) <= MAY_IMPORT.keys()


@pytest.mark.parametrize("room", sorted(PACKAGES_OF_OURS))
def test_a_room_says_what_it_is_and_is_small(room):
    folder = ROOT / room.replace(".", "/")
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring, f"{room}: one sentence in its __init__ says what belongs there"
    assert docstring.split("\n\n")[0].endswith(".")
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES or room in COLLECTIONS, files


def test_a_module_has_a_test_file_of_its_name_or_a_reason():
    tests = {(path.parent.name, path.stem.removeprefix("test_")) for path in (ROOT / "tests").rglob("test_*.py")}
    large = [path for path in modules() if path.stem != "__init__" and path.read_text().count("\n") > SMALL]
    untested = {
        name_of(path) for path in large if not tests & {(room, path.stem) for room in name_of(path).split(".")[:-1]}
    }
    listed = [
        (module, file)
        for files in yaml.safe_load(TESTED_ELSEWHERE.read_text()).values()
        for file, names in files.items()
        for module in names
    ]
    assert untested == {module for module, _ in listed}
    assert len(dict(listed)) == len(listed), "one reason for each"
    assert not [file for _, file in listed if not (ROOT / file).is_file()]


def test_the_picture_of_the_rooms_is_the_listing():
    picture = (ROOT / "CONTRIBUTING.md").read_text().partition("The folders:\n")[2].partition("\n\nA quantity")[0]
    listed, parents = [], []
    for indent, name in FOLDER.findall(picture):
        parents = [*parents[: len(indent) // 4], name]
        listed.append(".".join(parents))
    assert {room for room in listed if room.partition(".")[0] in PACKAGES} == PACKAGES_OF_OURS
    assert all((ROOT / room.replace(".", "/")).is_dir() for room in listed)

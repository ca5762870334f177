"""Who may import whom, from the straight line of the README. A design rule is a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sweep", "backends", "analysis")
PLAIN = {"sweep.config", "sweep.records"}
FIGURES = {"sweep.chunks", "sweep.metrics", "sweep.records"}
MAY_IMPORT = {
    "sweep.records": set(),
    "sweep.config": set(),
    "sweep.compose": {"sweep.config"},
    "sweep.load": PLAIN,
    "sweep.plan": PLAIN,
    "sweep.planning": PLAIN | {"sweep.compose", "sweep.plan"},
    "sweep.workload": PLAIN,
    "sweep.chunks": {"sweep.records"},
    "sweep.metrics": {"sweep.chunks", "sweep.records"},
    "sweep.steady": FIGURES,
    "sweep.vllm_flavour": FIGURES,
    "sweep.verdict": FIGURES | {"sweep.client"},
    "sweep.wire": {"sweep.records"},
    "backends.base": {"sweep.records"},
    "backends.server": {"backends.base", "backends.gpus", "backends.supervisor", "backends.task", "sweep.records"},
}
ANALYSIS = {"sweep.config", "sweep.records", "sweep.metrics", "sweep.store", "sweep.vllm_flavour"}


def modules():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    """The modules of this project that a file imports, each by the name of its file."""
    known = {name_of(module) for module in modules()}
    return {name for name in imports(path) if name in known and name not in PACKAGES}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_follow_the_layout(path):
    name = name_of(path)
    found = ours(path) - {name}
    if name in MAY_IMPORT:
        assert found <= MAY_IMPORT[name], f"{name} must not import {found - MAY_IMPORT[name]}"
    elif name.startswith("analysis"):
        foreign = {other for other in found if not other.startswith("analysis")}
        assert foreign <= ANALYSIS, f"{name} must not import {foreign - ANALYSIS}"
    elif name.startswith("backends.host"):
        assert all(other.startswith("backends.host") for other in found), f"{name} runs in the engine's environment"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_schedule_imports_ray(path):
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(path))
    assert not uses_ray or name_of(path) == "sweep.schedule"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_file_names_a_concrete_backend(path):
    concrete = {p.stem for p in (ROOT / "conf" / "backend").glob("*.yaml")}
    if not name_of(path).startswith("backends"):
        assert not {name.removeprefix("backends.") for name in ours(path) if name.startswith("backends.")} & concrete

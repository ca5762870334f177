"""Size is a budget: pyproject.toml says how many lines of Python the product and its tests may have."""

import tomllib

import pytest

from sweep.base.config import ROOT

LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sweep"]["lines"]


def lines_in(folders: list[str]) -> int:
    """Return the lines of the Python files of these folders, as `cat` and `wc -l` count them."""
    return sum(path.read_bytes().count(b"\n") for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folders", LIMITS)
def test_no_more_lines_than_the_budget(folders: str) -> None:
    lines = lines_in(folders.split())
    assert lines, "no file is counted"
    assert lines <= LIMITS[folders], f"{folders}: {lines} lines of Python, {LIMITS[folders]} are the budget"

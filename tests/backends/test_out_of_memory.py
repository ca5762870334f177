"""The lines in which engines say that they ran out of memory, by the strings in their own sources."""

import re
from pathlib import Path

import pytest

from backends.installed import configured, names
from backends.tables.causes import cause_table

LINES = [
    tuple(line.split(" | ", 1))
    for line in Path(__file__).with_name("out_of_memory.txt").read_text().splitlines()
    if not line.startswith("#")
]
EVERY, HARMLESS = ([line for name, line in LINES if name == kind] for kind in ("any", "harmless"))
OF_ENGINE = [(name, line) for name, line in LINES if name not in ("any", "harmless")]
ENGINES = sorted({name for name, _ in OF_ENGINE} | {"transformers", "transformers_cb", "vllm_offline"})


@pytest.mark.parametrize(("name", "line"), [*((name, line) for name in ENGINES for line in EVERY), *OF_ENGINE])
def test_out_of_memory_is_recognised(name, line):
    assert configured(name).log.ran_out_of_memory(f"loading\n{line}\n")


@pytest.mark.parametrize("name", [name for name in names() if configured(name).launches])
def test_every_pattern_of_an_engine_has_a_line(name):
    """Those for any engine too; a pattern is a message of the engine's sources: see test_engine_tables."""
    lines = EVERY + [line for _, line in OF_ENGINE]
    for pattern in (*cause_table().out_of_memory, *configured(name).log.out_of_memory):
        assert any(re.search(pattern, line, re.IGNORECASE) for line in lines), pattern


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("line", HARMLESS)
def test_other_lines_are_not(name, line):
    assert not configured(name).log.ran_out_of_memory(f"loading\n{line}\n")

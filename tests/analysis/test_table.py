"""The table type: it fits every width, and no text of a cell becomes anything but text."""

import csv
import io
import json
import re

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from analysis.report.page import TEMPLATES
from analysis.table import Cell, Column, Line, Output, Table, csv_of, json_text, text_table, view

WORDS = ["comparison", "engines-with-quite-long-names,", "max-num-batched-tokens=2048", "日本語の名前", "and", "others"]
ESCAPE = "\x1b[31m\x9b2J\u202e"
HOSTILE = ["=1+1", "+cmd", "-x", "@sum", "\t=1", "\r=1", "a|b", "a\\|b", "<b>&", f"x{ESCAPE}", "two\nlines"]


def lines_of(table: Table[object], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table)
    return console.file.getvalue().splitlines()


def grid(numbers: int, words: list[str]) -> Table[object]:
    """A table with one key, `numbers` figures and a column of words."""
    columns = [
        view("configuration", lambda row: f"{words[0]} {row}", kind="text", key=True),
        *(view(f"figure {n}", lambda row, n=n: f"{row}{n:,}.{n} (1 to 2)", "tokens/s") for n in range(numbers)),
        view("verdict", lambda row: " ".join(words), kind="text wide"),
    ]
    return Table(columns, [1, 2, 3])


@pytest.mark.parametrize("numbers", [0, 1, 6, 14])
def test_every_cell_is_whole_at_every_width(numbers: int) -> None:
    table = grid(numbers, WORDS)
    for width in range(60, 201):
        lines = lines_of(table, width)
        assert max(map(cell_len, lines)) <= width
        for n in range(numbers):
            assert sum(f"3{n:,}.{n} (1 to 2)" in line for line in lines) == 1, width
        printed = " ".join(lines).split()
        assert all(word in printed or cell_len(word) > 12 for word in WORDS), width


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5), st.integers(60, 200))
@example(["x" * 300], 60)
def test_no_line_is_wider_than_the_terminal(words: list[str], width: int) -> None:
    lines = lines_of(grid(3, words), width)
    assert max(map(cell_len, lines), default=0) <= width
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_a_text_in_every_format(text: str) -> None:
    table = text_table(["name", "figure"], [[text, "-1.5"]])
    head, rule, row = table.markdown()
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
    assert (head, rule) == ("| name | figure |", "|---|---|")
    assert "<b>" not in row
    page = TEMPLATES.get_template("macros.html").module.table(table)
    assert "<b>" not in page
    assert not {"\x1b", "\x9b", "\u202e"} & set("".join([row, *lines_of(table, 80), page]))
    records: Table[str] = Table([Column("name", "", lambda row: row), Column("n", "", lambda row: -1.5)], [text])
    (_, (cell, number)) = csv.reader(io.StringIO(records.csv(), newline=""))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert number == "-1.5", "a number is no formula"
    assert pd.read_csv(io.StringIO(csv_of(pd.DataFrame({"name": [text]}))))["name"][0] == cell.replace("\r", "\n")
    assert json.loads(records.json()) == [{"name": text, "n": -1.5}]
    assert not re.search("[\x1b\x9b\u202e]", json_text([text]))


def test_numbers_as_text_get_no_apostrophe() -> None:
    table: Table[str] = Table([Column("x", "", lambda row: row)], ["-1.5", "+3", "-1e-7", "-x", "- 3"])
    assert table.csv().splitlines() == ["x", "-1.5", "+3", "-1e-7", "'-x", "'- 3"]


def test_files_have_values_and_people_have_cells_with_units() -> None:
    columns: list[Column[float]] = [
        Column("ttft, again", "its time", lambda row: (row, float("nan")), of_value="s"),
        view("TTFT", lambda row: Cell(f"{1e3 * row:.0f}", "(1 to 2)"), "ms"),
        view("nothing", lambda row: "—"),
    ]
    table = Table(columns, [0.5])
    assert table.records() == [{"ttft": 0.5, "again": None}]
    assert table.markdown() == ["| TTFT (ms) |", "|---|", "| 500 (1 to 2) |"]
    assert lines_of(table, 80) == ["        TTFT", "          ms", "500 (1 to 2)"]
    assert Table(columns, []).csv() == "ttft,again\n", "the keys stand there without a row too"


def test_an_output_is_the_same_sentences_in_every_format() -> None:
    table = text_table(["a"], [["1"]], title="Title")
    output = Output([Line("first", "bold"), table, Line("last <i>")], table)
    assert output.written("text") == "first\n\nTitle\na\n1\n\nlast <i>\n"
    assert output.written("markdown") == "- **first**\n\nTitle:\n\n| a |\n|---|\n| 1 |\n\n- last &lt;i>\n"

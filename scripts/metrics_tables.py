"""Makes the tables in docs/metrics.md and docs/columns.md from the declarations.

`python scripts/metrics_tables.py` writes them: quantities, and the columns of every file of a run.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence

from analysis.answers.output import ANSWER_COLUMNS
from analysis.compare.output import comparison_columns
from analysis.explain.output import PART_COLUMNS
from analysis.statistics.comparison import MARGIN
from analysis.statistics.request_quantiles import QUANTILE_COLUMNS
from analysis.studies.printed import JUDGED
from analysis.summary import SUMMARY_COLUMNS
from analysis.table import Column, Table, meanings, text_table, view
from sweep.base.config import ROOT
from sweep.disk.columns import TELEMETRY_FIELDS, Meaning, request_columns, trial_columns
from sweep.numbers.quantity import Quantity, columns, declared

METRICS_DOCUMENT = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- tables: python scripts/metrics_tables.py -->", "<!-- end of tables -->"
COLUMNS_DOCUMENT = ROOT / "docs" / "columns.md"
COLUMN_HEADINGS = ("column", "unit", "kind", "what it is, or its formula")


def tables() -> str:
    """Return a Markdown table for each module of quantities, below the module's docstring."""
    modules: dict[str, list[Quantity]] = {}
    for quantity in declared():
        modules.setdefault(quantity.module, []).append(quantity)
    return "\n\n".join(_markdown_table(module, quantities) for module, quantities in modules.items())


QUANTITIES: tuple[Column[Quantity], ...] = (
    view("quantity", lambda quantity: f"`{quantity.name}`"),
    view("unit", lambda quantity: quantity.unit or "–"),
    view("kind", lambda quantity: quantity.kind),
    view("better", lambda quantity: quantity.better or "–"),
    view("columns", lambda quantity: _statistics(quantity)),
    view("formula", lambda quantity: quantity.formula),
)


def _markdown_table(module: str, quantities: list[Quantity]) -> str:
    return "\n".join([f"{inspect.getdoc(sys.modules[module])}\n", *Table(QUANTITIES, quantities).markdown()])


def _statistics(quantity: Quantity) -> str:
    columns = "itself" if quantity.per is None else f"statistics per {quantity.per}"
    return f"{columns}, also `steady_*`" if quantity.event else columns


def column_tables() -> str:
    """Return a Markdown table for each file of a run and each export: columns with unit, kind and meaning."""
    measured: dict[str, tuple[str, str, str]] = {}
    for column, statistic in columns().items():
        quantity = statistic.quantity
        over = f"{statistic.name} of " if statistic.name else ""
        formula = f"{over}`{quantity.name}`{', steady state' if statistic.steady else ''}" if over else quantity.formula
        measured[column] = (quantity.unit, quantity.kind, formula)
    recorded = _recorded(trial_columns())
    placed = ("warnings", "in_plan")
    trials = {column: recorded[column] for column in recorded if column not in placed} | measured
    trials |= {column: recorded[column] for column in placed}
    files = {
        "trials.parquet": trials,
        "requests.parquet": _recorded(request_columns()),
        "telemetry.parquet": _recorded(TELEMETRY_FIELDS),
        "summary.csv": _recorded(SUMMARY_COLUMNS),
        "sweep summary --format csv, json": _recorded(meanings(ANSWER_COLUMNS)),
        "sweep compare --format csv, json": _recorded(meanings(comparison_columns(MARGIN))),
        "sweep explain --format csv, json": _recorded(meanings(PART_COLUMNS)),
        "sweep studies RUN --format csv, json": _recorded(meanings(JUDGED)),
        "analysis.quantiles(folder).table": _recorded(QUANTILE_COLUMNS),
    }
    tables = {column: "\n".join(meanings_table(of_file).markdown()) for column, of_file in files.items()}
    return "\n\n".join(f"## {column}\n\n{table}" for column, table in tables.items())


def meanings_table(meanings: Mapping[str, tuple[str, ...]]) -> Table[Sequence[object]]:
    """Return a table of columns: names as code, with their meanings; an empty cell is a dash."""
    rows = ([f"`{name}`", *(text or "–" for text in texts)] for name, texts in meanings.items())
    return text_table(COLUMN_HEADINGS, rows)


def _recorded(meanings: Mapping[str, Meaning]) -> dict[str, tuple[str, str, str]]:
    """Return rows for columns that belong to no quantity, so they have no kind."""
    return {name: (unit, "", meaning) for name, (unit, meaning) in meanings.items()}


def with_tables(text: str, content: str = "") -> str:
    """Return a document with new tables: the quantities' tables, unless `content` is given."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{content or tables()}\n\n{END}{after}"


if __name__ == "__main__":
    METRICS_DOCUMENT.write_text(with_tables(METRICS_DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    COLUMNS_DOCUMENT.write_text(with_tables(COLUMNS_DOCUMENT.read_text("utf-8"), column_tables()), encoding="utf-8")

"""The tables of docs/metrics.md, made from the declared quantities: `python scripts/metrics_tables.py` writes them."""

import inspect
import sys

from sweep.config import ROOT
from sweep.numbers.quantity import Quantity, declared

METRICS_DOCUMENT = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- tables: python scripts/metrics_tables.py -->", "<!-- end of tables -->"
METRICS_HEADINGS = ("quantity", "unit", "kind", "better", "columns", "formula")


def tables() -> str:
    """A table in Markdown for each module of quantities, under what the module says of itself."""
    modules: dict[str, list[Quantity]] = {}
    for quantity in declared():
        modules.setdefault(quantity.module, []).append(quantity)
    return "\n\n".join(_markdown_table(module, quantities) for module, quantities in modules.items())


def _markdown_table(module: str, quantities: list[Quantity]) -> str:
    rows = [METRICS_HEADINGS, ("---",) * len(METRICS_HEADINGS), *map(_cells, quantities)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{inspect.getdoc(sys.modules[module])}\n\n{lines}"


def _cells(quantity: Quantity) -> tuple[str, ...]:
    columns = "itself" if quantity.per is None else f"statistics per {quantity.per}"
    if quantity.event:
        columns += ", also `steady_*`"
    formula = quantity.formula.replace("|", "\\|")
    return f"`{quantity.name}`", quantity.unit or "–", quantity.kind, quantity.better or "–", columns, formula


def with_tables(text: str) -> str:
    """A document with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    METRICS_DOCUMENT.write_text(with_tables(METRICS_DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

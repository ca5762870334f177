"""An opened run: its answer, its points with intervals, its trials and requests, and charts."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from analysis.answers.capacity import claims_table, claims_within, of_capacities
from analysis.answers.deciding import answers
from analysis.answers.output import lines, ranking_table
from analysis.answers.question import asked_points
from analysis.compare.output import comparison_output
from analysis.compare.sides import side_of
from analysis.compare.verdicts import comparisons
from analysis.explain.decomposition import EXPLAINED, explanations
from analysis.explain.output import explanation_output
from analysis.load import requests
from analysis.plotting.chart_style import style
from analysis.plotting.drawing import against_load
from analysis.plotting.layout import arrange
from analysis.quantities import compared_column, labelled_column
from analysis.report.tables import deciding_table
from analysis.results import RunResults, open_results
from analysis.statistics.comparison import MARGIN
from analysis.table import Line, Table, print_parts
from sweep.base.config import read_slo
from sweep.disk.stored_run import run_place


@dataclass(frozen=True, repr=False)
class OpenedRun:
    """An opened run. Times are in seconds; intervals are the same as in the terminal and the report."""

    results: RunResults

    def __repr__(self) -> str:
        """Return the answer and the deciding values as text."""
        text = io.StringIO()
        print_parts([*map(Line, self.answers), self._table], Console(width=100, file=text))
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        table = self._table
        headings = [f"{column.title} {column.unit}".strip() for column in table.headings]
        frame = pd.DataFrame([[str(cell) for cell in row] for row in table.body], columns=headings)
        return "".join(f"<p>{escape(text)}</p>" for text in self.answers) + frame.to_html(index=False)

    @property
    def _table(self) -> Table[Any]:
        return of_capacities(self.results) if len(self.results.claims) > 1 else deciding_table(self.results)

    @cached_property
    def answers(self) -> list[str]:
        """The answer in sentences, as `sweep summary` prints it."""
        return lines(answers([self.results]))

    @cached_property
    def points(self) -> pd.DataFrame:
        """Each quantity's `value`, and the ends of its interval (`low`, `high`), by task, configuration and load."""
        points, layout = self.results.points, self.results.layout
        keys = [points["panel"], points["line"], pd.Series([layout.load(point) for _, point in points.iterrows()])]
        index = pd.MultiIndex.from_arrays(keys, names=["task", "configuration", "load"])
        percentiles = self.results.run.percentiles
        ends = {"value": "", "low": "_ci_low", "high": "_ci_high"}
        names = {
            (name, end): f"{name}{ends[end]}"
            for name in points
            if labelled_column(str(name), percentiles)
            for end in ends
        }
        return pd.DataFrame({key: points[name] for key, name in names.items() if name in points}).set_index(index)

    @property
    def trials(self) -> pd.DataFrame:
        """The trials, whatever their outcome (see docs/columns.md)."""
        return self.results.run.trials

    def requests(self, trial_id: str) -> pd.DataFrame:
        """Return the requests of a trial (see docs/columns.md)."""
        return requests(self.results.run.place, trial_id)

    def best(self, slo: str | Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return the best configuration of each task within an SLO such as `ttft=200ms` (default: the run's SLO)."""
        configurations = ranking_table(answers([self.results], read_slo(slo))).records()
        return pd.DataFrame([configuration for configuration in configurations if configuration["rank"] == 1])

    @property
    def capacities(self) -> pd.DataFrame:
        """The capacity of each configuration and task, if the run searched for it, with the cost at its ends."""
        return pd.DataFrame(claims_table(claims_within([self.results])).records())

    @property
    def question(self) -> pd.DataFrame:
        """Return what became of each point of `ask`, with the model's predicted band (see docs/ask.md)."""
        return pd.DataFrame(asked_points(self.results.questions).records())

    def compare(self, reference: str, other: str, column: str = "output_throughput") -> pd.DataFrame:
        """Compare two engines, or two selections (e.g. `backend.flags.max-num-seqs=8`), task by task."""
        named = [name if "=" in name else f"backend={name}" for name in (reference, other)]
        sides = [side_of(f"{self.results.run.name}@{name}", self.results.run, name) for name in named]
        return pd.DataFrame(comparison_output(comparisons(sides, [column]), MARGIN, []).table.records())

    def explain(self, columns: Iterable[str] = EXPLAINED) -> pd.DataFrame:
        """Return factor and share of each part of a ladder or factorial. Raises `Unexplained` if there is neither."""
        parts = explanations(self.results.run, self.results.layout, columns)
        return pd.DataFrame(explanation_output(parts).table.records())

    def plot(self, quantity: str = "output_throughput", by: str | None = None) -> Figure | None:
        """Draw a quantity against `by` (default: the load), with a line per configuration; None if it has no values.

        `by` is a number that varies in the run, e.g. `batch_size`; anything else raises ConfigError.
        """
        layout = self.results.layout if by is None else arrange(self.results.run, self.results.summary, by)
        compared_column(quantity, map(str, self.results.points), self.results.run.percentiles)
        with style():
            return against_load(self.results.run, layout, quantity)


def opened_run(run: str | Path, all_rows: bool = False) -> OpenedRun:
    """Open a run by its folder, its name under results/, its report or its URL. Raises as `analysis.load` does."""
    return OpenedRun(open_results(run_place(str(run)), all_rows))

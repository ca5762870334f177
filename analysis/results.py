"""Summarises a run once, for its tables, charts and report."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.failures import Losses, dropped_trials, losses
from analysis.load import Run, open_run
from analysis.plotting.fitting import Fit, fits
from analysis.plotting.layout import arrange
from analysis.point_names import Layout
from analysis.statistics.contests import Contests
from analysis.statistics.variance import Components, components
from analysis.summary import summary_and_contests
from analysis.vllm_figures import VLLMFigures, vllm_figures
from analysis.warnings import by_point, result_warnings
from sweep.disk.run_files import read_claims, read_questions
from sweep.numbers.warnings import ResultWarning


@dataclass(frozen=True)
class RunResults:
    """A run and all data derived from it, computed on first use."""

    run: Run

    @property
    def summary(self) -> pd.DataFrame:
        """The points, as in summary.csv."""
        return self._summarised[0]

    @property
    def contests(self) -> Contests:
        """The contests, which compare any two points by any measured quantity."""
        return self._summarised[1]

    @cached_property
    def _summarised(self) -> tuple[pd.DataFrame, Contests]:
        return summary_and_contests(self.run)

    @cached_property
    def layout(self) -> Layout:
        return arrange(self.run, self.summary)

    @property
    def points(self) -> pd.DataFrame:
        """The summary, with each point's line, panel and position in the charts."""
        return self.layout.points

    @cached_property
    def claims(self) -> dict[str, dict[str, Any]]:
        """The claims of a capacity search, by point (docs/capacity.md). Raises DamagedFile."""
        return read_claims(self.run.paths)

    @cached_property
    def questions(self) -> dict[str, dict[str, Any]]:
        """The answers of the run's questions, by name (docs/ask.md). Raises DamagedFile."""
        return read_questions(self.run.paths)

    @property
    def searched(self) -> dict[str, dict[str, Any]]:
        """What the run's searches found: its claims and the answers of its questions."""
        return self.claims | self.questions

    @cached_property
    def warnings(self) -> list[ResultWarning]:
        return result_warnings(self.run, self.layout)

    @cached_property
    def point_warnings(self) -> dict[int, list[ResultWarning]]:
        return by_point(self.warnings)

    def warnings_at(self, point: "pd.Series[Any]") -> list[ResultWarning]:
        """Return the warnings about a row of `points`, one per code."""
        return self.point_warnings.get(int(str(point.name)), [])

    @cached_property
    def reserving(self) -> frozenset[int]:
        """The points with memory that their engine reserved, if other points have the memory in use."""
        kinds = self.layout.placed(self.run.ok).groupby("point")["memory_label"].first().dropna()
        return frozenset(kinds.index[kinds == "reserved"] if kinds.nunique() > 1 else ())

    @cached_property
    def components(self) -> list[Components]:
        """The components of variance of the main quantities."""
        return components(self.run, self.layout)

    @cached_property
    def losses(self) -> Losses:
        return losses(self.run, self.layout)

    @cached_property
    def dropped(self) -> "pd.Series[str]":
        """Why the race dropped each point; null if it did not."""
        return dropped_trials(self.run, self.layout).groupby("point")["reason"].first().reindex(self.points.index)

    @cached_property
    def fits(self) -> list[Fit]:
        return fits(self.run, self.layout)

    @cached_property
    def vllm_figures(self) -> VLLMFigures:
        """The trials' metrics by vLLM's definitions, from their requests. Raises DamagedFile."""
        return vllm_figures(self.run)

    @cached_property
    def machines(self) -> list[str]:
        """The accelerators with a result, or the processors and their cores: `2 CPU cores (AMD EPYC)`."""
        rows = self.run.ok[["accelerator", "hardware"]].dropna(subset="accelerator").astype(object)
        facts = [(name, json.loads(text) if name == "cpu" else {}) for name, text in rows.fillna("{}").to_numpy()]
        return sorted({f"{each['cores']} CPU cores ({each['cpu']})" if "cores" in each else gpu for gpu, each in facts})

    @cached_property
    def formats(self) -> dict[str, list[str]]:
        """The lines of each number format, e.g. `bfloat16, bitsandbytes nf4`, since a speed depends on its format."""
        ok = self.layout.placed(self.run.ok)[["line", "dtype", "engine_facts"]].drop_duplicates()
        formats: dict[str, dict[str, None]] = {}
        for line, dtype, facts in ok.astype(object).itertuples(index=False, name=None):
            text = _format(dtype, json.loads(facts) if isinstance(facts, str) else {})
            formats.setdefault(text, {})[line] = None
        return {text: list(lines) for text, lines in formats.items()}


def open_results(folder: str | Path, all_rows: bool = False) -> RunResults:
    """Open the results of a run in a folder or at a URL: its current plan or all rows. Raises as `load` does."""
    return RunResults(open_run(folder, all_rows))


def _format(dtype: Any, facts: dict[str, Any]) -> str:
    """Return the computation's data type and the weights' quantisation, with the quantisation's method if known."""
    quantisation, method = facts.get("quantization"), facts.get("quantization_method")
    if quantisation and method:
        quantisation = f"{quantisation} (made by {method})"
    parts = [part for part in (dtype, quantisation) if isinstance(part, str) and part]
    return ", ".join(dict.fromkeys(parts)) or "unknown"

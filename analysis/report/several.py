"""Writes report.html for several runs: the answer over all runs, their points in one chart, and the verdicts.

It has no chart files, but links to the runs' reports.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.answers.asking import run_names
from analysis.answers.deciding import answers
from analysis.answers.sentences import lead
from analysis.compare.output import changes, verdict_reasons
from analysis.compare.sides import side_of
from analysis.compare.verdicts import comparisons
from analysis.report.html import lead_of_run, provenance, summary_table, warned
from analysis.report.page import Lead, page
from analysis.report.page_data import page_data
from analysis.report.tables import answers_table, verdict_tables
from analysis.report.trial_files import relative_path
from analysis.results import RunResults
from analysis.statistics.comparison import MARGIN
from analysis.table import csv_of
from sweep.base.config import ConfigError
from sweep.base.whole_file import write_whole
from sweep.disk.run_files import RunPaths


def write_several(runs: Sequence[RunResults], folder: Path) -> None:
    """Write report.html for several runs, and summary.csv with their points, into a folder without a run.

    Raises ConfigError if the folder contains a run, whose report would be overwritten.
    """
    paths = RunPaths(folder)
    if paths.trials.exists():
        raise ConfigError(f"--output {folder}: contains a run with a report; expected another folder")
    tables = [summary_table(results) for results in runs]
    for table, name in zip(tables, run_names(runs), strict=True):
        table.insert(0, "run", name)
    write_whole(paths.summary, csv_of(pd.concat(tables, ignore_index=True)))
    write_whole(paths.report, html_of_several(runs, folder))


def html_of_several(runs: Sequence[RunResults], folder: Path) -> str:
    named = dict(zip(run_names(runs), runs, strict=True))
    every = answers(runs)
    parts = {
        "answer": lead(every),
        "answers": answers_table(every),
        "warnings": warned(named.items()),
        "runs": [provenance(results, name) for name, results in named.items()],
        **_verdicts(named),
    }
    leads = [Lead(lead_of_run(results), name, _report_link(results, folder)) for name, results in named.items()]
    return page(", ".join(named), leads, "several.html", parts, page_data(runs, folder))


def _verdicts(named: dict[str, RunResults]) -> dict[str, Any]:
    """Compare the first run with every other run that has a result."""
    reference, *others = named
    sides = [side_of(name, named[name].run) for name in (reference, *others) if len(named[name].run.ok)]
    compared = comparisons(sides) if len(sides) > 1 and sides[0].text == reference else []
    return {
        "reference": reference,
        "verdicts": verdict_tables(compared),
        "changes": changes(compared),
        "reasons": verdict_reasons(compared, MARGIN),
    }


def _report_link(results: RunResults, folder: Path) -> str:
    """Return the address of the run's report; empty if there is no report on this disk."""
    report = results.run.paths.report
    return quote(relative_path(report, folder)) if results.run.copy is None and report.exists() else ""

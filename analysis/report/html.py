"""report.html: the results of a run, how far they hold, and what was run, in one file that can be mailed.

Its content is gathered here; its look is in templates/.
"""

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.answers.deciding import answers
from analysis.answers.sentences import lead
from analysis.plotting.drawing import MOST_REPLICATES
from analysis.plotting.figure_files import COLOURS, GRID, INK, MUTED, SavedFigure, draw_all
from analysis.quantities import definitions
from analysis.report.models import models_table
from analysis.report.page import Lead, is_explorable, page
from analysis.report.page_data import page_data
from analysis.report.tables import (
    answers_table,
    explained_tables,
    ladder_table,
    results_table,
    spread_table,
    steady_table,
)
from analysis.results import RunResults
from analysis.statistics.survivors import bounds_text
from analysis.studies.findings import judge_run
from analysis.studies.printed import JUDGED
from analysis.studies.tables import study_of
from analysis.summary import planned_trials
from analysis.table import Table, csv_of
from analysis.warnings import grouped, scope
from sweep.base.wording import number
from sweep.disk import run_files
from sweep.numbers.warnings import ResultWarning

INTERACTIVE = "pareto"  # the figure that the script draws


def write_all(results: RunResults) -> None:
    """Write summary.csv, figures/ and report.html of a run.

    Raises:
        ValueError: for a run in an object store, of which `sweep report URL --output FOLDER` writes a report.
    """
    run = results.run
    if run.copy is not None:
        raise ValueError("a report of a run in an object store needs a folder: sweep report URL --output FOLDER")
    run_files.write_whole(run.paths, run.paths.summary, csv_of(summary_table(results)))
    figures = draw_all(run, results.layout)
    run_files.write_whole(run.paths, run.paths.report, html(results, figures))


def html(results: RunResults, figures: Iterable[SavedFigure]) -> str:
    """The report as a document."""
    data = page_data([results])
    left_out = INTERACTIVE if is_explorable(data) else ""
    parts = {
        **_findings(results),
        "runs": [provenance(results)],
        "figures": [(each.name, _inline(each), each.caption) for each in figures if each.name != left_out],
    }
    return page(results.run.name, [Lead(lead_of_run(results))], "sections.html", parts, data)


def summary_table(results: RunResults) -> pd.DataFrame:
    """The points as in summary.csv."""
    codes = [
        ";".join(sorted(warning.code for warning in results.point_warnings.get(index, ())))
        for index in results.summary.index
    ]
    lost = [bounds_text(point, results.run.percentiles) for _, point in results.summary.iterrows()]
    return results.summary.assign(lost_to_failures=lost, warnings=codes)


def _findings(results: RunResults) -> dict[str, Any]:
    """The parts of the report with findings, and the variables of the notes below them."""
    run, layout, counts = results.run, results.layout, results.points["n"]
    replicates = len(layout.visible(run.ok))
    reasons = run.ok["steady_method"].dropna().mode()
    answered = answers([results])
    return {
        "run": run,
        "layout": layout,
        "results": results,
        "answer": lead(answered),
        "answers": answers_table(answered),
        "warnings": warned([("", results)]),
        "points": results_table(results),
        "findings": Table(JUDGED, judgements) if (judgements := judge_run(results)) else None,
        "study": study_of(run.name),
        "models": models_table(results),
        "spread": spread_table(results),
        "ladder": ladder_table(layout),
        "explained": explained_tables(results),
        "steady": steady_table(results),
        "points_without_result": int((counts == 0).sum()),
        "too_many_replicates": MOST_REPLICATES if replicates > MOST_REPLICATES else 0,
        "no_steady_state": str(reasons.iloc[0]).removeprefix("none: ") if len(reasons) else "",
        "formulas": definitions(set(run.ok.columns[run.ok.notna().any()]), run.percentiles),
        "outcomes": list(run.not_ok["outcome"].unique()),
    }


def warned(runs: Iterable[tuple[str, RunResults]]) -> list[tuple[ResultWarning, list[str]]]:
    """Each kind of warning once, with the messages about these runs, which begin with the run's name, if any."""
    warnings: dict[str, tuple[ResultWarning, list[str]]] = {}
    for name, results in runs:
        for warning in grouped(results.warnings):
            points = scope(warning, results.layout)
            message = (f"{name}: " if name else "") + warning.message + (f" [{points}]" if points else "")
            warnings.setdefault(warning.code, (warning, []))[1].append(message)
    return list(warnings.values())


def lead_of_run(results: RunResults) -> str:
    """The number of trials and points with a result, the model, the machine and the time."""
    run, counts = results.run, results.points["n"]
    trials = planned_trials(run)
    begin, end = run.trials["started_at"].dropna(), run.trials["ended_at"].dropna()
    points = max(len(counts), trials // int(run.experiment.get("replicates") or trials or 1))
    parts = [
        f"{len(run.ok)} of {trials} trials and {counts.gt(0).sum()} of {points} points have a result",
        ", ".join(sorted(run.trials["model"].dropna().unique())),
        ", ".join(sorted(run.ok["accelerator"].dropna().unique())),
        f"{begin.min()[:16]} to {end.max()[:16]} UTC".replace("T", " ", 2) if len(begin) and len(end) else "",
    ]
    return " · ".join(part for part in parts if part)


def _inline(figure: SavedFigure) -> Markup:
    """A figure's SVG for the page: in the page's own colours, and with ids that are unique on it."""
    svg = figure.svg[figure.svg.index("<svg") :]
    named = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: f"line-{n}" for n, colour in enumerate(COLOURS)}}
    for colour, name in named.items():
        svg = svg.replace(colour.lower(), f"var(--{name})")
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{figure.name}-', svg)
    svg = svg.replace("url(#", f"url(#{figure.name}-")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.caption)}"', 1))


# What was run --------------------------------------------------------------------------------------------------------


def provenance(results: RunResults, name: str = "") -> dict[str, Any]:
    """A run's command, engines, machines and versions; `name` is its title among several."""
    run = results.run
    attempted = run.trials[run.trials["attempt"].notna()]
    engines = attempted.groupby("backend", sort=False)["engine_version"]
    return {
        "name": name,
        "run": run,
        "place": str(run.place if run.copy else run.paths.out.absolute()),
        "formats": results.formats,
        "distinct": lambda column: ", ".join(map(str, column.dropna().unique())),
        "attempted": attempted,
        "engines": [" ".join([str(backend), "/".join(versions.dropna().unique())]) for backend, versions in engines],
        "machines": dict.fromkeys(_machine(text) for text in attempted["hardware"].dropna().unique()),
        "profile": run.experiment.get("hardware") or {},
        "versions": [
            (backend, json.loads(text))
            for backend, texts in run.trials.groupby("backend", sort=False)["versions"]
            for text in texts.dropna().unique()
        ],
    }


def _machine(text: str) -> str:
    hardware = json.loads(text)
    hardware.pop("load_average", None)  # of the moment: it would tell one machine apart from itself
    if "memory_bytes" in hardware:
        hardware["memory"] = f"{number(hardware.pop('memory_bytes') / 2**30)} GiB"
    parts = {key: ", ".join(value) if isinstance(value, list) else value for key, value in hardware.items() if value}
    return ", ".join(f"{key} {value}" for key, value in parts.items())

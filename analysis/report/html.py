"""Writes report.html: one file that can be mailed, with a run's results, how reliable they are, and what was run.

This module gathers the content; templates/ has the layout.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html import escape
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.answers.capacity import of_capacities
from analysis.answers.deciding import answers
from analysis.answers.optimum import leading_sentence
from analysis.answers.question import asked_points
from analysis.figures import SavedFigure, draw_all
from analysis.plotting.chart_style import COLOURS, GRID, INK, MUTED
from analysis.plotting.drawing import MOST_REPLICATES
from analysis.point_names import listed
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
from analysis.studies.printed import JUDGED, study_differences
from analysis.studies.tables import study_of
from analysis.summary import planned_trials
from analysis.table import Table, csv_of
from analysis.warnings import grouped, scope
from sweep.base.wording import number
from sweep.disk import run_files
from sweep.numbers.warnings import ResultWarning, Severity

SVG_SIZE = re.compile(r'<svg[^>]*? width="([\d.]+)pt"[^>]*? height="([\d.]+)pt"')
INTERACTIVE = "pareto"  # replaced by the chart that the page's script draws
MOST_FIGURES, MOST_POINTS, ROW = 4, 720, 905  # open charts, and the height and width of their rows; the rest are closed


def write_all(results: RunResults, target: run_files.RunPaths | None = None) -> None:
    """Write a run's summary.csv, figures/ and report.html into its folder or another.

    Raises:
        ValueError: for a run in an object store, since only `sweep report URL --output FOLDER` writes its report.
    """
    run = results.run
    if run.copy is not None:
        raise ValueError("a report of a run in an object store needs a folder: sweep report URL --output FOLDER")
    paths = target or run.paths
    run_files.write_whole(paths, paths.summary, csv_of(summary_table(results)))
    figures = draw_all(run, results.layout, paths)
    run_files.write_whole(paths, paths.report, html(results, figures))


def html(results: RunResults, figures: Iterable[SavedFigure]) -> str:
    """Return the report as a document."""
    data = page_data([results])
    left_out = INTERACTIVE if is_explorable(data) else ""
    inline = [replace(each, svg=_inline(each)) for each in figures if each.name != left_out]
    telling = list(_open_figures(inline))
    parts = {
        **_findings(results),
        "runs": [provenance(results)],
        "telling": telling,
        "figures": [each for each in inline if each not in telling],
    }
    return page(results.run.name, [Lead(lead_of_run(results))], "sections.html", parts, data)


def summary_table(results: RunResults) -> pd.DataFrame:
    """Return the points as in summary.csv."""
    codes = [
        ";".join(sorted(warning.code for warning in results.point_warnings.get(index, ())))
        for index in results.summary.index
    ]
    lost = [bounds_text(point, results.run.percentiles) for _, point in results.summary.iterrows()]
    return results.summary.assign(lost_to_failures=lost, warnings=codes)


def _findings(results: RunResults) -> dict[str, Any]:
    """Return the report's parts that hold findings, and the variables for the notes below them."""
    run, layout, counts = results.run, results.layout, results.points["n"]
    replicates = len(layout.visible(run.ok))
    answered = answers([results])
    return {
        "run": run,
        "layout": layout,
        "results": results,
        "claims": results.questions or results.claims,  # the table has the claims of a question's launches
        "capacities": of_capacities(results),
        "asked": asked_points(results.questions),
        "answer": leading_sentence(results, answered),
        "answers": answers_table(answered),
        "warnings": warned([("", results)]),
        "points": results_table(results),
        "findings": Table(JUDGED, judgements) if (judgements := judge_run(results)) else None,
        "study": study_of(run.name),
        "study_differences": study_differences(results),
        "models": models_table(results),
        "spread": spread_table(results),
        "ladder": ladder_table(layout),
        "explained": explained_tables(results),
        "steady": steady_table(results),
        "points_without_result": int((counts == 0).sum()),
        "too_many_replicates": MOST_REPLICATES if replicates > MOST_REPLICATES else 0,
        "formulas": definitions(set(run.ok.columns[run.ok.notna().any()]), run.percentiles),
        "outcomes": list(run.not_ok["outcome"].unique()),
    }


def warned(runs: Iterable[tuple[str, RunResults]]) -> list[tuple[ResultWarning, list[str]]]:
    """Return every kind of warning once, with its messages about these runs (after the run's name, if any)."""
    warnings: dict[str, tuple[ResultWarning, list[str]]] = {}
    for name, results in runs:
        for warning in grouped(results.warnings):
            points = scope(warning, results.layout)
            message = (f"{name}: " if name else "") + warning.message + (f" [{points}]" if points else "")
            warnings.setdefault(warning.code, (warning, []))[1].append(message)
    return sorted(warnings.values(), key=lambda item: list(Severity).index(item[0].kind.severity))


def lead_of_run(results: RunResults) -> str:
    """The report's first line: what was compared, how many trials and points have a result, the machine, the time."""
    run, counts = results.run, results.points["n"]
    trials = planned_trials(run)
    begin, end = run.trials["started_at"].dropna(), run.trials["ended_at"].dropna()
    points = max(len(counts), trials // int(run.experiment.get("replicates") or trials or 1))
    formats = list(results.formats) if len(results.formats) == 1 else []
    parts = [
        listed(list(dict.fromkeys(run.trials["backend"]))),
        " ".join([", ".join(sorted(run.trials["model"].dropna().unique())), *formats]),
        f"{len(run.ok)} of {trials} trials and {counts.gt(0).sum()} of {points} points have a result",
        ", ".join(results.machines),
        f"{begin.min()[:16]} to {end.max()[:16]} UTC".replace("T", " ", 2) if len(begin) and len(end) else "",
    ]
    return " · ".join(part for part in parts if part)


def _open_figures(figures: Iterable[SavedFigure]) -> Iterator[SavedFigure]:
    """Yield the charts with a finding whose rows fit in a screen; at least one."""
    above = across = row = 0.0
    for each in [figure for figure in figures if figure.finding][:MOST_FIGURES]:
        found = SVG_SIZE.search(each.svg)
        width, height = map(float, found.groups()) if found else (ROW, 0.0)
        beside = across + width <= ROW
        rows = (above, across + width, max(row, height)) if beside else (above + row, width, height)
        if not row or rows[0] + rows[2] <= MOST_POINTS:
            above, across, row = rows
            yield each


def _inline(figure: SavedFigure) -> Markup:
    """Return a chart's SVG for the page and, if there is one, its SVG for phones, with the page's colours."""
    found = SVG_SIZE.search(figure.phone)  # read at three quarters of its size; with longer names it scrolls
    phone = f' class="phone" style="min-width: {0.75 * float(found[1]):.0f}pt"' if found else ""
    return _on_page(figure, figure.svg) + (_on_page(figure, figure.phone, phone) if phone else Markup())


def _on_page(figure: SavedFigure, svg: str, attributes: str = "") -> Markup:
    """Return an SVG with ids that are unique on the page."""
    svg, name = svg[svg.index("<svg") :], f"{figure.name}{'-phone' * bool(attributes)}"
    named = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: f"line-{n}" for n, colour in enumerate(COLOURS)}}
    for colour, variable in named.items():
        svg = svg.replace(colour.lower(), f"var(--{variable})")
    for place in (' id="', 'href="#', "url(#"):
        svg = svg.replace(place, f"{place}{name}-")
    spoken = escape(f"{figure.finding}. {figure.caption}" if figure.finding else figure.caption)
    return Markup(svg.replace("<svg", f'<svg{attributes} role="img" aria-label="{spoken}"', 1))


# What was run --------------------------------------------------------------------------------------------------------


def provenance(results: RunResults, name: str = "") -> dict[str, Any]:
    """Return a run's command, engines, machines and versions; `name` is its title among several runs."""
    run = results.run
    attempted = run.trials[run.trials["attempt"].notna()]
    engines = attempted.groupby("backend", sort=False)["engine_version"]
    return {
        "name": name,
        "run": run,
        "place": str(run.place if run.copy else run.paths.out.absolute()),
        "formats": results.formats,
        "study_differences": study_differences(results),
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
    hardware.pop("load_average", None)  # varies with time, so one machine would look like several
    if "memory_bytes" in hardware:
        hardware["memory"] = f"{number(hardware.pop('memory_bytes') / 2**30)} GiB"
    parts = {key: ", ".join(value) if isinstance(value, list) else value for key, value in hardware.items() if value}
    return ", ".join(f"{key} {value}" for key, value in parts.items())

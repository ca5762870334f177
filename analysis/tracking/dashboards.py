"""W&B's comparison of the configurations of a run: a workspace and a report, with a section for each task.

A workspace can be made without W&B, as JSON in the run's folder. A report queries the API while it is built.
"""

import json
import re
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from analysis.answers.deciding import answers
from analysis.answers.optimum import leading_sentence
from analysis.point_names import spaced
from analysis.report.tables import answers_table
from analysis.results import RunResults
from analysis.summary import key_columns
from analysis.tracking.sweep_run import X, curve_key, headline_columns
from analysis.tracking.tracker import LONGEST_NAME
from sweep.base.whole_file import write_whole

WIDTH, HEIGHT, COLUMNS_OF_GRID = 8, 8, 3  # panels' width and height in W&B's units, and their number in a row
DECIDING_FIGURES = ("output_throughput", "ttft_p50_ms", "cost_per_million_tokens")  # follow the settings that vary


def engines_workspace(results: RunResults, project: str, entity: str, group: str) -> workspaces.Workspace:
    """Return the saved view of a run: its answer, then the headline values of configurations, a section per task."""
    sections = [workspaces.Section(name="Answer", panels=answer_panels(results), is_open=True)]
    sections += [
        workspaces.Section(name=task, panels=task_panels(results, task), is_open=True)
        for task in results.layout.visible_panels
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=_title(results),
        sections=sections,
        runset_settings=workspaces.RunsetSettings(filters=runs_of(group)),
    )


def engines_report(results: RunResults, project: str, entity: str, group: str) -> reports.Report:
    """Return the run as a W&B page. Building the page queries the API for the project."""
    blocks: list[Any] = [reports.MarkdownBlock(text=answer_text(results))]
    for task in results.layout.visible_panels:
        runset = reports.Runset(entity=entity, project=project, filters=runs_of(group))
        blocks += [reports.H2(text=task), reports.PanelGrid(runsets=[runset], panels=task_panels(results, task))]
    return reports.Report(project=project, entity=entity, title=_title(results), blocks=blocks)


def _title(results: RunResults) -> str:
    return f"{results.run.name}: configurations by task"[:LONGEST_NAME]


def runs_of(group: str) -> str:
    """Return the filter that selects the W&B runs of a sweep and its trials."""
    return f"Metric('group') = '{group}'"


def answer_panels(results: RunResults) -> list[Any]:
    """Return panels: the answer, the table of points, throughput against speed per user, and parallel coordinates."""
    varying = [
        reports.ParallelCoordinatesPlotColumn(metric=reports.Config(key), display_name=spaced(key))
        for key in _varying(results)
    ]
    figures = [reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric(name)) for name in DECIDING_FIGURES]
    panels = [
        reports.MarkdownPanel(markdown=answer_text(results)),
        reports.WeavePanelSummaryTable(table_name="points"),
        reports.ScatterPlot(
            title="Throughput (tokens/s) against TPOT p50 (ms), a mark for each trial",
            x=reports.SummaryMetric("tpot_p50_ms"),
            y=reports.SummaryMetric("output_throughput"),
        ),
        reports.ParallelCoordinatesPlot(title="Settings and results", columns=[*varying, *figures]),
    ]
    return _placed(panels, across=2)


def _varying(results: RunResults) -> list[str]:
    """Return the keys of trials' configs that differ between points."""
    keys = [key for key in key_columns(results.run) if results.points[key].nunique(dropna=False) > 1]
    return [re.sub(r"\W", "_", key) for key in keys]


def task_panels(results: RunResults, task: str) -> list[Any]:
    """Return a panel per headline column of a task: a line per configuration along x, or bars."""
    layout = results.layout
    points = layout.points[(layout.points["panel"] == task) & layout.points["line"].isin(layout.coloured)]
    drawn: list[Any] = []
    for shown in headline_columns(results):
        keys = [curve_key(task, shown, line) for line in points.loc[points[shown.column].notna(), "line"].unique()]
        title = f"{shown.label} ({shown.unit})"
        if keys and layout.x and points[layout.x].nunique() > 1:
            drawn.append(reports.LinePlot(title=title, x=X, y=keys, title_x=layout.axis(task)))
        elif keys:
            drawn.append(reports.BarPlot(title=title, metrics=keys, orientation="v"))
    return _placed(drawn, COLUMNS_OF_GRID)


def _placed(panels: list[Any], across: int) -> list[Any]:
    width = WIDTH * COLUMNS_OF_GRID // across
    for index, panel in enumerate(panels):
        panel.layout = reports.Layout(x=index % across * width, y=index // across * HEIGHT, w=width, h=HEIGHT)
    return panels


def answer_text(results: RunResults) -> str:
    """Return the answer in Markdown: its sentence, and a row for each task."""
    points, answered = results.points, answers([results])
    measured = f"{int((points['n'] > 0).sum())} of {len(points)} points have a result."
    table = answers_table(answered)
    note = "Intervals, warnings and failures are in the report of the sweep's run."
    text = f"**{leading_sentence(results, answered)}**\n\n{measured} {note}\n"
    return "\n".join([text, *(table.markdown() if table else ())])


def view_of(made: workspaces.Workspace) -> dict[str, Any]:
    """Return the data that `save` would send to W&B for a workspace."""
    view = made._to_model()
    content: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"displayName": view.display_name, "entityName": view.entity, "projectName": view.project, "spec": content}


def write_offline(made: workspaces.Workspace, folder: Path) -> None:
    write_whole(folder / "workspace.json", json.dumps(view_of(made), indent=1))


def save_online(made: workspaces.Workspace, page: reports.Report, folder: Path) -> list[str]:
    """Save the workspace and the report, replacing earlier versions from this folder. Return their addresses."""
    ids: dict[str, str] = {}
    remembered = folder / "views.json"
    if remembered.is_file():
        ids = json.loads(remembered.read_text(encoding="utf-8"))
    made._internal_name, made._internal_id = ids.get("workspace_name", ""), ids.get("workspace", "")
    page.id = ids.get("report", "")
    made.save()
    page.save()
    ids = {"workspace_name": made._internal_name, "workspace": made._internal_id, "report": page.id}
    write_whole(remembered, json.dumps(ids))
    return [f"W&B workspace: {made.url}", f"W&B report: {page.url}"]

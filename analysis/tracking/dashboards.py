"""Compares a run's engines in W&B: a workspace and a report, with a section for each task.

A workspace can be made without W&B, as JSON in the run's folder. A report queries the API while it is built.
"""

import json
from pathlib import Path
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from analysis.headline import HEADLINE
from analysis.quantities import labelled_column
from analysis.results import RunResults
from analysis.table import text_table
from analysis.tracking import process
from analysis.tracking.sweep_run import SWEEP, best_lines
from analysis.tracking.tracker import LONGEST_NAME
from sweep.base.records import LOAD_COLUMNS
from sweep.base.whole_file import write_whole

WIDTH, HEIGHT, COLUMNS_OF_GRID = 8, 8, 3  # a panel's size in W&B's units; panels in a row
GROUPED_BY = ("backend", "model")  # what separates engines: runs with equal values form one line, their mean


def engines_workspace(results: RunResults, project: str, entity: str, group: str) -> workspaces.Workspace:
    """Make the saved view of a run's trials: headline figures by engine, with a section for each task."""
    sections = [
        workspaces.Section(name=task, panels=task_panels(results, task), is_open=True) for task in tasks_of(results)
    ]
    runset = workspaces.RunsetSettings(filters=runs_of(group), groupby=[expr.Config(key) for key in GROUPED_BY])
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{results.run.name}: engines by task"[:LONGEST_NAME],
        sections=sections,
        runset_settings=runset,
    )


def engines_report(results: RunResults, project: str, entity: str, group: str) -> reports.Report:
    """Make a W&B page for the run. It queries the API for the project while it is built."""
    blocks: list[Any] = [reports.MarkdownBlock(text=best_table(results))]
    for task in tasks_of(results):
        runset = reports.Runset(entity=entity, project=project, filters=runs_of(group), groupby=["config.backend"])
        blocks += [reports.H2(text=task), reports.PanelGrid(runsets=[runset], panels=task_panels(results, task))]
    title = f"{results.run.name}: engines by task"[:LONGEST_NAME]
    return reports.Report(project=project, entity=entity, title=title, blocks=blocks)


def runs_of(group: str) -> str:
    """Return the filter for a run's trials."""
    return f"Metric('group') = '{group}' and Metric('jobType') != '{SWEEP}'"


def tasks_of(results: RunResults) -> list[str]:
    return sorted(results.run.ok["workload"].dropna().unique())


def task_panels(results: RunResults, task: str) -> list[Any]:
    """Make a panel for each headline figure of a task: over the load if it varies, otherwise as bars."""
    ok = results.run.ok[results.run.ok["workload"] == task]
    loads = ok[[*LOAD_COLUMNS]].astype("float64").bfill(axis="columns").iloc[:, 0]
    draw = _over_load if loads.nunique() > 1 else _bars
    names = [name for name in HEADLINE if name in ok and ok[name].notna().any()]
    drawn = []
    for index, name in enumerate(names):
        panel = draw(f"{task}/{name}", _title(name))
        panel.layout = reports.Layout(
            x=index % COLUMNS_OF_GRID * WIDTH, y=index // COLUMNS_OF_GRID * HEIGHT, w=WIDTH, h=HEIGHT
        )
        drawn.append(panel)
    return drawn


def _over_load(metric: str, title: str) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=process.LOAD, y=[metric], title_x="Load", **_by_engine())


def _bars(metric: str, title: str) -> reports.BarPlot:
    return reports.BarPlot(title=title, metrics=[metric], orientation="v", **_by_engine())


def _by_engine() -> dict[str, Any]:
    return {"groupby": reports.Config(GROUPED_BY[0]), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}


def _title(column: str) -> str:
    declared = labelled_column(column)
    if declared is None:
        return column
    unit = "s" if declared.unit == "ms" else declared.unit  # runs hold the raw data, in seconds
    return f"{declared.label} ({unit})"


def best_table(results: RunResults) -> str:
    """Return each task's best engine, in Markdown."""
    points = results.points
    rows = [[best.panel, best.line, f"{best.output_throughput:.4g}"] for best in best_lines(points)]
    table = text_table(["task", "highest output throughput", "tokens/s"], rows).markdown()
    measured = f"{int((points['n'] > 0).sum())} of {len(points)} points have a result."
    note = "Intervals, warnings and failures are in the run's report."
    return "\n".join([f"{measured} {note}", "", *table])


def view_of(made: workspaces.Workspace) -> dict[str, Any]:
    """Return what `save` would send for a workspace."""
    view = made._to_model()
    content: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"displayName": view.display_name, "entityName": view.entity, "projectName": view.project, "spec": content}


def write_offline(made: workspaces.Workspace, folder: Path) -> Path:
    """Write the workspace as JSON."""
    file = folder / "workspace.json"
    write_whole(file, json.dumps(view_of(made), indent=1))
    return file


def save_online(made: workspaces.Workspace, page: reports.Report, folder: Path) -> list[str]:
    """Save both, replacing what was saved from this folder before. Return their addresses."""
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
    return [f"workspace: {made.url}", f"report: {page.url}"]

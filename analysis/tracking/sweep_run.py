"""A whole run as one W&B run: the table of its points, its curves as history, its figures, report and files."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.headline import HEADLINE
from analysis.results import RunResults
from analysis.tracking import process
from analysis.tracking.tracker import LONGEST_NAME

SWEEP = "sweep"  # this run's job type, and the end of its id
MOST_ROWS = 10_000  # rows that W&B shows at most


def track_sweep(settings: Mapping[str, Any], mode: str, results: RunResults) -> None:
    """Log the run: the default panels' figures as history, the rest as a table, images, a page and an artifact."""
    import wandb

    paths = results.run.paths
    run = process.begin_run(settings, mode, described_sweep(results))
    try:
        run.define_metric(process.LOAD, hidden=True)
        run.define_metric("curves of*", step_metric=process.LOAD, summary="max")
        for point in curves(results):
            run.log(point)
        table = points_table(results)
        logged: dict[str, Any] = {"points": wandb.Table(columns=list(table), data=table.to_numpy(object).tolist())}
        images = sorted(paths.figures.glob("*.png"))
        logged |= {f"figures/{image.stem}": wandb.Image(str(image)) for image in images}
        logged["report"] = wandb.Html(paths.report.read_text(encoding="utf-8"), inject=False)
        run.log(logged)
        artifact = wandb.Artifact(f"results-{process.token(paths.tracking)}", "results")
        for path in (paths.trials, paths.summary, paths.report, *images):
            artifact.add_file(str(path), name=path.relative_to(paths.out).as_posix())
        run.log_artifact(artifact)
        run.summary.update(best_figures(results.points))
    finally:
        run.finish()


def described_sweep(results: RunResults) -> dict[str, Any]:
    """Describe the run for W&B, without the command line, since people type secrets into command lines."""
    run, trials = results.run, results.run.trials
    return {
        "trial_id": SWEEP,
        "name": f"{run.name}: all points"[:LONGEST_NAME],
        "job_type": SWEEP,
        "tags": [SWEEP],
        "config": {
            "experiment": run.name,
            "axes": run.axes,
            "baseline": run.baseline,
            "replicates": run.experiment.get("replicates"),
            **{f"{column}s": sorted(trials[column].dropna().unique()) for column in ("backend", "model", "workload")},
        },
    }


def points_table(results: RunResults) -> pd.DataFrame:
    """Return the points as in summary.csv, without empty columns."""
    table = pd.read_csv(results.run.paths.summary).dropna(axis="columns", how="all").head(MOST_ROWS)
    return table.astype(object).where(table.notna(), None)


def curves(results: RunResults) -> Iterator[dict[str, Any]]:
    """Return the headline figures by load, in ascending order, with a key for every line of every panel."""
    layout = results.layout
    points = layout.points[layout.points["n"] > 0]
    sizes = points[layout.x].astype("float64") if layout.x else pd.Series(0.0, points.index)
    for size, of_size in points.groupby(sizes, sort=True):
        values = {
            f"curves of {point['panel']}/{column}/{point['line']}": float(point[column])
            for _, point in of_size.iterrows()
            for column in HEADLINE
            if column in point and pd.notna(point[column]) and math.isfinite(point[column])
        }
        if values:
            yield {process.LOAD: size, **values}


class BestLine(NamedTuple):
    """The line of a panel with the highest output throughput."""

    panel: str
    line: str
    output_throughput: float


def best_lines(points: pd.DataFrame) -> Iterator[BestLine]:
    """Return the best line of each panel that has a throughput."""
    if "output_throughput" in points:
        measured = points[points["output_throughput"].notna()]
        for panel, of_panel in measured.groupby("panel"):
            best = of_panel.iloc[int(of_panel["output_throughput"].argmax())]
            yield BestLine(str(panel), best["line"], float(best["output_throughput"]))


def best_figures(points: pd.DataFrame) -> dict[str, Any]:
    """Return each panel's best line and its throughput, and the numbers of points with and without a result."""
    figures: dict[str, Any] = {"points": len(points), "points_with_result": int((points["n"] > 0).sum())}
    for best in best_lines(points):
        figures[f"best output_throughput of {best.panel}"] = best.output_throughput
        figures[f"best line of {best.panel}"] = best.line
    return figures

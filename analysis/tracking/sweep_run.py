"""A whole sweep as one W&B run: the table of its points, its curves as history, its charts, report and files."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.answers.capacity import claims_table, claims_within
from analysis.answers.deciding import answers
from analysis.answers.optimum import leading_sentence
from analysis.answers.question import asked_points
from analysis.headline import HEADLINE
from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.tracking import process
from analysis.tracking.tracker import LONGEST_NAME

X = "x"  # the step of curves: the x axis of the charts
MOST_COLUMNS = 10  # maximum columns of the table of points
MOST_CAPACITIES = 10  # in the summary, with three keys each; the table has all
SWEEP = "sweep"  # the job type of this W&B run, and the end of its id
MOST_ROWS = 10_000  # maximum rows that W&B shows


def track_sweep(settings: Mapping[str, Any], mode: str, results: RunResults) -> None:
    """Log the run: the default panels' values as history, the rest as a table, images, a page and an artifact."""
    import wandb

    paths = results.run.paths
    run = process.begin_run(settings, mode, described_sweep(results))
    try:
        run.define_metric(X, hidden=True)
        run.define_metric("curves of*", step_metric=X, summary="max")
        for point in curves(results):
            run.log(point)
        table = points_table(results)
        logged: dict[str, Any] = {"points": wandb.Table(columns=list(table), data=table.to_numpy(object).tolist())}
        capacities, questions = claims_table(claims_within([results])), asked_points(results.questions)
        for name, records in (("capacities", capacities.records()), ("question", questions.records())):
            if records:
                logged[name] = wandb.Table(columns=list(records[0]), data=[[*each.values()] for each in records])
        images = sorted(paths.figures.glob("*.png"))
        logged |= {f"figures/{image.stem}": wandb.Image(str(image)) for image in images}
        logged["report"] = wandb.Html(paths.report.read_text(encoding="utf-8"), inject=False)
        run.log(logged)
        artifact = wandb.Artifact(f"results-{process.token(paths.tracking)}", "results")
        for path in (paths.trials, paths.summary, paths.report, *images):
            artifact.add_file(str(path), name=path.relative_to(paths.out).as_posix())
        run.log_artifact(artifact)
        run.summary.update(outcome(results))
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
    """Return the points with the headline columns (at most ten columns), in display units; summary.csv has the rest."""
    layout = results.layout
    points = layout.points.head(MOST_ROWS)
    table = points[["line", "panel"]].set_axis(["configuration", "task"], axis="columns")
    if layout.x:
        table[layout.x_label.lower()] = points[layout.x]
    table["outcomes"] = points["outcomes"]
    for shown in headline_columns(results):
        ends = ("", "_ci_low", "_ci_high") if shown.column == "output_throughput" else ("",)
        for name, end in zip(("", " low", " high"), ends, strict=False):
            table[f"{shown.short}{name} ({shown.unit})"] = points[f"{shown.column}{end}"] * shown.scale
    table = table.iloc[:, :MOST_COLUMNS]
    return table.astype(object).where(table.notna(), None)


def curves(results: RunResults) -> Iterator[dict[str, Any]]:
    """Yield a mapping per value of x, in ascending order: x, and the headline values by panel, quantity and line."""
    layout = results.layout
    points = layout.points[layout.points["n"] > 0]
    sizes = points[layout.x].astype("float64") if layout.x else pd.Series(0.0, points.index)
    for size, of_size in points.groupby(sizes, sort=True):
        values = {
            curve_key(str(point["panel"]), shown, str(point["line"])): float(point[shown.column]) * shown.scale
            for _, point in of_size.iterrows()
            for shown in headline_columns(results)
            if pd.notna(point[shown.column]) and math.isfinite(point[shown.column])
        }
        if values:
            yield {X: size, **values}


def headline_columns(results: RunResults) -> list[LabelledColumn]:
    """Return the labels of the headline columns with a value at some point."""
    points = results.layout.points
    present = [labelled_column(name) for name in HEADLINE if name in points and points[name].notna().any()]
    return [shown for shown in present if shown is not None]


def curve_key(panel: str, shown: LabelledColumn, line: str) -> str:
    """Return the key of a line's values on W&B: `curves of qa/ttft_p50_ms/vllm`."""
    return f"curves of {panel}/{shown.column}{'_ms' if shown.unit == 'ms' else ''}/{line}"


def outcome(results: RunResults) -> dict[str, Any]:
    """Return the answer, the numbers of points and of points with a result, and the first capacities' intervals."""
    points = results.points
    answer = leading_sentence(results, answers([results]))
    claimed: dict[str, Any] = {}
    for number, claim in enumerate(claims_within([results])[:MOST_CAPACITIES]):
        ends = {"": f"{claim.record['configuration']}: {claim.load} {claim.record['unit']}"}
        ends |= {f"_{end}": claim.record[end] for end in ("lower", "upper")}
        claimed |= {f"capacity{end}{f' {number}' if number else ''}": value for end, value in ends.items()}
    for record in results.questions.values():
        claimed |= {f"question_{name}": record[name] for name in ("best", "sure")}
        claimed["question_answer"] = record["lines"]
    return {"answer": answer, "points": len(points), "points_with_result": int((points["n"] > 0).sum()), **claimed}

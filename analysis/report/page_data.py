"""The points of one or several runs for the report's script: a JSON block that no text inside it can end."""

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.answers.asking import measured_points, placed_trials, run_names
from analysis.answers.deciding import answers_of_points, shared_slo
from analysis.answers.slo_bounds import bounded_percentile, common_percentiles, fewest_requests
from analysis.headline import HEADLINE, STEADY, shown_column
from analysis.load import Run
from analysis.quantities import LabelledColumn, labelled_column, setting
from analysis.report.shared_layout import shared_layout
from analysis.report.tables import label
from analysis.report.trial_files import FileLink, file_links, relative_path
from analysis.results import RunResults
from analysis.statistics.contests import Contests, by_question
from analysis.statistics.estimates import INTERVAL_COLUMNS
from analysis.statistics.pooled import launches
from analysis.statistics.survivors import bound
from sweep.base.setting_labels import TRIAL_MARK
from sweep.numbers.quantities.goodput import BOUNDED
from sweep.numbers.quantity import percentile_name

SIGNIFICANT_DIGITS = 5  # significant digits kept per value
PER_GPU, USER_SPEED = "throughput_per_gpu", "user_speed"
ALSO = (  # listed after the headline and the percentiles that an SLO can bound
    "total_throughput",
    "request_throughput",
    "goodput_share",
    "kv_cache_usage_max",
    "memory_mean_bytes",
    "memory_peak_bytes",
    "agreement",
    "quality",
)
RATIOS = ("output_throughput", "ttft_p50")  # quantities with a ratio to the baseline
MOST_RIVALS = 12  # maximum points of a question for listing all pairs; with more, only pairs with the best are listed
TestedPair = list[Any]  # better point, other point, lead, the ends of its interval, "ahead" or "a tie"
INTERVAL_ENDS = ("", *(f"_{end}" for end in INTERVAL_COLUMNS))


def page_data(runs: Sequence[RunResults], folder: Path | None = None) -> dict[str, Any]:
    """Return the points' values, intervals, warnings and trials, column by column, with all labels.

    Args:
        folder: the page's folder, from which it links to files of trials; default: the folder of a single run.
    """
    layout = shared_layout(runs)
    points, rows = layout.points, _result_rows(runs)
    first = rows.groupby("point").first().reindex(range(len(points)))
    gpus = first["gpu_count"].fillna(0).to_numpy(np.float64)
    tasks, machines = list(points["panel"].unique()), _machines(first)
    trials, files = _trials(runs, folder)
    return {
        "run": ", ".join(run_names(runs)),
        "tasks": tasks,
        "lines": layout.lines,
        "axis": layout.x_label,
        "onGpus": bool(gpus.max(initial=0) > 0),
        "machines": list(machines["name"].unique()),
        "prices": [None if pd.isna(price) else float(price) for price in machines.drop_duplicates("name")["price"]],
        "slo": {name: limit for name, limit in shared_slo(runs).items() if name in BOUNDED},
        "percentiles": _bounded_columns(rows, points, shared_slo(runs) or BOUNDED),
        "quantities": _with_tests(runs, list(_quantities(points, gpus, _percentiles(runs)))),
        "answered": _answered(runs),
        "files": [[link.title, link.path] for link in files],
        "points": {
            "task": [tasks.index(panel) for panel in points["panel"]],
            "line": [layout.lines.index(line) for line in points["line"]],
            "machine": [int(place) for place in pd.factorize(machines["name"])[0]],
            "load": [layout.load(point) for _, point in points.iterrows()],
            "size": _rounded(points[layout.x]) if layout.x else [None] * len(points),
            "sizeText": [setting(value) for value in points[layout.x]] if layout.x else [""] * len(points),
            "name": [layout.describe(point) for _, point in points.iterrows()],
            "n": [int(n) for n in points["n"]],
            "launches": _launches(points, rows),
            "outcomes": ["" if point["n"] else str(point["outcomes"]) for _, point in points.iterrows()],
            "requests": _rounded(points["requests"]),
            "failed": _rounded(points["failed"]),
            "warnings": [of_point for results in runs for of_point in _warnings(results)],
            "trials": trials,
            "again": [command for results in runs for command in _commands(results)],
            "reads": _reads(runs, trials, files),
        },
    }


def as_block(data: Any) -> Markup:
    """Return JSON for a script element. Text from an engine cannot end the element or begin another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    escapes = {ord(character): f"\\u{ord(character):04x}" for character in "<>&'"}
    return Markup(text.translate(escapes))


def _result_rows(runs: Sequence[RunResults]) -> pd.DataFrame:
    """Return only the needed columns of the trials with a result, with `point` and `launch_number`."""
    columns = ["point", "accelerator", "gpu_count", "price_per_hour", "percentiles"]
    return placed_trials(runs)[columns].assign(
        launch_number=np.concatenate([launches(results.run) for results in runs])
    )


def _percentiles(runs: Sequence[RunResults]) -> list[float]:
    return sorted({percentile for results in runs for percentile in results.run.percentiles})


def _quantities(points: pd.DataFrame, gpus: Any, percentiles: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Return the measured quantities of the points, two derived quantities, and the ratios to the baseline."""
    count = np.maximum(gpus, 1)
    if "output_throughput" in points:
        ends = [points[f"output_throughput{end}"] / count for end in INTERVAL_ENDS]
        unit = "tokens/s per GPU" if gpus.max(initial=0) > 0 else "tokens/s"
        usual = label("output_throughput")
        name, short = ("Throughput per GPU",) * 2 if gpus.max(initial=0) > 0 else (usual.label, usual.short)
        declared = _declared(PER_GPU, name, unit, "higher", ends)
        yield {**declared, "short": short, **_intervals(points, "output_throughput")}
    if "tpot_p50" in points and points["tpot_p50"].gt(0).any():
        times = [points[f"tpot_p50{end}"] for end in INTERVAL_ENDS]
        value, low, high, new_low, new_high = (1 / each.where(each > 0) for each in times)
        ends = [value, high, low, new_high, new_low]
        declared = _declared(USER_SPEED, "Speed per user (1 / TPOT p50)", "tokens/s", "higher", ends)
        yield {**declared, **_intervals(points, "tpot_p50"), "short": "Speed per user"}
    with_failures = points[points["failed"] > 0]
    for labelled in _measured_columns(points, percentiles):
        if labelled.column == "output_throughput" and count.max(initial=1) == 1:
            continue  # for one GPU or none, this equals the throughput above
        steady, ends = _figures_shown(points, labelled)
        lost = {
            index: text[0]
            for index, point in with_failures.iterrows()
            if (text := bound(point, labelled.column, labelled.scale)) and text[0] != "—"
        }
        declared = _declared(labelled.column, labelled.label, labelled.unit, labelled.better, ends)
        declared |= _intervals(points, labelled.column)
        yield {**declared, "short": labelled.short, "lost": lost, "steady": steady}
    for name in (name for name in RATIOS if f"{name}_vs_baseline" in points):
        compared, column = label(name), f"{name}_vs_baseline"
        ends = [points[column], points[f"{column}_ci_low"], points[f"{column}_ci_high"]]
        declared = _declared(column, f"{compared.label} × baseline", "×", compared.better, ends)
        yield {**declared, "short": f"{compared.short} × baseline", "compared": True}


def _figures_shown(points: pd.DataFrame, labelled: LabelledColumn) -> tuple[list[int], list["pd.Series[float]"]]:
    """Return the points that show the steady state's value, and the values with the ends of their intervals."""
    column, steady = labelled.column, f"steady_{labelled.column}"
    ends = [points[f"{column}{end}"] * labelled.scale for end in INTERVAL_ENDS]
    if steady not in STEADY or steady not in points:
        return [], ends
    settled = np.array([shown_column(point, column) == steady for _, point in points.iterrows()], np.bool_)
    steady_ends = [points[f"{steady}{end}"] * labelled.scale for end in INTERVAL_ENDS]
    pairs = zip(ends, steady_ends, strict=True)
    return [int(index) for index in np.flatnonzero(settled)], [every.where(~settled, window) for every, window in pairs]


def _with_tests(runs: Sequence[RunResults], quantities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each quantity with a better direction the tested ratios of pairs at one task and load.

    On one machine, throughput per GPU has the same ratios as throughput.
    """
    if not any((results.points["n"] > 0).any() for results in runs):
        return quantities
    contests, percentiles = measured_points(runs).contests, _percentiles(runs)
    for declared in quantities:
        labelled = labelled_column("output_throughput" if declared["key"] == PER_GPU else declared["key"], percentiles)
        if labelled is not None and labelled.better is not None and labelled.column in contests.figures:
            declared["tested"] = list(_tested(contests, labelled, declared["value"]))
            declared["barred"] = [at for at in range(len(declared["value"])) if contests.barred([labelled.column], at)]
    return quantities


def _tested(contests: Contests, quantity: LabelledColumn, shown: Sequence[float | None]) -> Iterator[TestedPair]:
    """Return the tested pairs of points at one task and load: all pairs of few points, else pairs with the best."""
    for members in by_question(contests.question):
        rivals = [int(point) for point in members if shown[point] is not None]
        rivals = [point for point in rivals if not contests.barred([quantity.column], point)]
        rivals.sort(key=lambda point: (shown[point] or 0.0) * (1 if quantity.better == "lower" else -1))
        pairs = combinations(rivals, 2) if len(rivals) <= MOST_RIVALS else ((rivals[0], other) for other in rivals[1:])
        chosen = list(pairs)
        for (first, second), interval in zip(chosen, contests.ratios(quantity, chosen).T, strict=True):
            if np.isfinite(interval).all() and interval.min() > 0:  # no interval if its ends overflow
                ratio, low, high = map(float, interval)
                yield _tested_pair(first, second, ratio, low, high, quantity.better == "lower")


def _tested_pair(first: int, second: int, ratio: float, low: float, high: float, is_lower_better: bool) -> TestedPair:
    """Return the pair with its lead, which is above 1 if the first point is better."""
    lead, least, most = (1 / ratio, 1 / high, 1 / low) if is_lower_better else (ratio, low, high)
    if most < 1:
        first, second, lead, least, most = second, first, 1 / lead, 1 / most, 1 / least
    ends = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in (lead, least, most)]
    return [first, second, *ends, "ahead" if least > 1 else "a tie"]


def _answered(runs: Sequence[RunResults]) -> list[TestedPair]:
    """Return the tested pairs of the answers within the runs' SLO: each task's best with every other configuration."""
    slo = shared_slo(runs)
    # Bounds set on the page have no percentile.
    if not slo or not set(slo) <= set(BOUNDED) or not any((results.points["n"] > 0).any() for results in runs):
        return []
    return [
        _tested_pair(answer.meeting[0].point, rival.point, rival.ratio, rival.low, rival.high, is_lower_better)
        for answer in answers_of_points(runs, slo)
        for is_lower_better in [answer.criterion.quantity.better == "lower"]
        for rival in answer.meeting[1:]
        if rival.low > 0 and math.isfinite(rival.high)
    ]


def _declared(
    key: str, label: str, unit: str, better: str | None, ends: Sequence["pd.Series[float]"]
) -> dict[str, Any]:
    """Return a quantity with its values and the ends of its intervals, of these launches and of a new launch."""
    names = ("value", "low", "high", "newLow", "newHigh")
    columns = {name: _rounded(values) for name, values in zip(names, ends, strict=False)}
    return {"key": key, "label": label, "short": label, "unit": unit, "better": better, "lost": {}, **columns}


def _intervals(points: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return the points whose intervals come from launches, and a column's replicates if some lack a value."""
    by_launches = points.get(f"{column}_by_launches", pd.Series(False, points.index))
    counts = points.get(f"{column}_n", points["n"])
    fewer = counts[counts.lt(points["n"])]
    return {
        "byLaunches": [int(index) for index in np.flatnonzero(by_launches)],
        "fewer": {int(str(index)): int(n) for index, n in fewer.items()},
    }


def _launches(points: pd.DataFrame, rows: pd.DataFrame) -> list[int]:
    """Return the number of launches behind each point. A single launch gives no interval for a new launch."""
    counts = rows.groupby("point")["launch_number"].nunique()
    return [int(n) for n in counts.reindex(range(len(points)), fill_value=0)]


def _measured_columns(points: pd.DataFrame, percentiles: Sequence[float]) -> Iterator[LabelledColumn]:
    latencies = [f"{name}_{percentile_name(each)}" for name in BOUNDED for each in percentiles]
    for name in dict.fromkeys([*HEADLINE, *latencies, *ALSO]):
        labelled = labelled_column(name, percentiles)
        if labelled is not None and name in points and points[name].notna().any():
            yield labelled


def _rounded(values: "pd.Series[Any]") -> list[float | int | None]:
    """Round finite numbers to a few digits; all other values become null."""
    rounded = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values.to_numpy(np.float64, na_value=np.nan)]
    return [None if not math.isfinite(value) else int(value) if value == int(value) else value for value in rounded]


def _machines(first: pd.DataFrame) -> pd.DataFrame:
    """Return each point's machine and its price in USD per hour, per GPU if it has GPUs; NaN if the run had no price.

    A machine with several prices (e.g. in several runs) is listed once per price, since costs depend on the price.
    """
    names = first["accelerator"].astype(object)
    names = names.fillna(next(iter(names.dropna()), "machine")).astype(str)
    prices = first["price_per_hour"].astype("float64")
    prices = prices.fillna(prices.groupby(names).transform("first"))
    several = prices.groupby(names).transform("nunique") > 1
    return pd.DataFrame({"name": names.where(~several, names + prices.map(" at ${:g}/h".format)), "price": prices})


def _bounded_columns(rows: pd.DataFrame, points: pd.DataFrame, slo: Iterable[str]) -> dict[str, Any]:
    """Return the percentiles that can bound latencies, and the highest that each point's requests support."""
    measured, percentiles = points[points["n"] > 0], common_percentiles(rows)
    fewest = fewest_requests(measured, slo, percentiles) if len(measured) else 0
    usual = percentile_name(bounded_percentile(fewest, percentiles))
    return {"names": [percentile_name(each) for each in percentiles], "usual": usual}


def _warnings(results: RunResults) -> list[list[list[str]]]:
    """Return the code, severity and message of every warning, by point."""
    return [
        [[warning.code, warning.kind.severity, warning.message] for warning in results.warnings_at(point)]
        for _, point in results.points.iterrows()
    ]


def _trials(runs: Sequence[RunResults], folder: Path | None) -> tuple[list[list[list[Any]]], list[FileLink]]:
    """Return each point's trials: id, replicate, outcome, and the positions of its files in the list of all files.

    Trials may share a file: the log of their launch, or the compact file of many trials.
    """
    places: dict[FileLink, int] = {}
    trials = [of_point for results in runs for of_point in _trials_of_run(results, folder, places)]
    return trials, list(places)


def _trials_of_run(results: RunResults, folder: Path | None, places: dict[FileLink, int]) -> list[list[list[Any]]]:
    columns = ["point", "trial_id", "replicate", "outcome", "deployment_id", "attempt"]
    trials: list[list[list[Any]]] = [[] for _ in range(len(results.points))]
    paths = results.run.paths
    prefix = "" if folder is None else f"{relative_path(paths.out, folder)}/"
    rows = results.layout.placed(results.run.trials)[columns]
    for point, trial_id, replicate, outcome, deployment, attempt in rows.itertuples(index=False, name=None):
        linked = pd.notna(attempt) and results.run.copy is None  # the local copy of a stored run will be removed
        links = file_links(paths, deployment, attempt, trial_id) if linked else ()
        number = None if pd.isna(replicate) else int(replicate)
        files = [places.setdefault(link._replace(path=prefix + link.path), len(places)) for link in links]
        trials[int(point)].append([str(trial_id), number, str(outcome), files])
    return trials


def _reads(runs: Sequence[RunResults], trials: list[list[list[Any]]], files: Sequence[FileLink]) -> list[str]:
    """Return, by point, the Python line that reads the requests of one of its trials from a shared file.

    It is empty if each trial has its own file.
    """
    folders = [_place_typed_here(results.run) for results in runs for _ in range(len(results.points))]
    compact = {place for place, link in enumerate(files) if link.compact}
    chosen = [next((trial_id for trial_id, *_, own in each if compact & set(own)), None) for each in trials]
    return [
        f"from llm_sweep import analysis; analysis.requests({folder!r}, {trial_id!r})" if trial_id else ""
        for folder, trial_id in zip(folders, chosen, strict=True)
    ]


def _commands(results: RunResults) -> list[str]:
    """Return, by point, the command that measures one of its trials again from the trial's row. If no trial is `ok`,
    return the run's command.
    """
    measured = results.layout.placed(results.run.ok)
    trial_ids = measured[measured["config"].notna()].groupby("point")["trial_id"].first()
    folder = shlex.quote(_place_typed_here(results.run))
    return [
        f"sweep rerun {folder}{TRIAL_MARK}{trial_ids[index]}" if index in trial_ids.index else command
        for index, command in enumerate(_own_commands(results))
    ]


def _place_typed_here(run: Run) -> str:
    """Return the run's folder relative to the current folder (where a reader types), else in full, or its URL."""
    if run.copy is not None:
        return str(run.place)
    absolute = run.paths.out.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _own_commands(results: RunResults) -> list[str]:
    """Return, by point, the run's command with the point's axes set; empty for a ladder's steps, which no key sets."""
    command, axes = results.run.experiment.get("command"), results.run.experiment.get("axes") or []
    points = results.points
    if not command or "ladder" in axes:
        return [""] * len(points)
    columns = {axis: axis if axis in points else axis.rpartition(".")[2] for axis in axes}
    columns = {axis: column for axis, column in columns.items() if column in points}
    commands = []
    for _, point in points.iterrows():
        settings = [f"{axis}={_typed(point[column])}" for axis, column in columns.items() if pd.notna(point[column])]
        commands.append(" ".join([str(command), *map(shlex.quote, settings), "out=results/again"]))
    return commands


def _typed(value: Any) -> str:
    """Return a setting as a user types it, e.g. 8 rather than 8.0."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)

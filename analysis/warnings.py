"""Warnings about a run's results: the trials' warnings, and warnings from comparing trials or points.

warnings.yaml declares the warnings; a check is the function of that name.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.failures import dropped_trials
from analysis.headline import HEADLINE
from analysis.load import Run
from analysis.point_names import Layout, listed
from analysis.quantities import labelled_column
from analysis.statistics.contests import UNEQUAL, Standing, warnings_of_trials
from analysis.statistics.intervals import FloatArray, t
from analysis.statistics.pooled import of_endpoints
from analysis.summary import planned_trials
from sweep.base.wording import count, duration_text, number
from sweep.numbers.warnings import Evidence, ResultWarning, Severity, declared_checks

WIDE = 0.10  # half an interval / its mean
UNEQUAL_CHARACTERS = 1.3  # ratio of most to fewest characters per token
UNEQUAL_INPUTS = 1.05  # ratio of most to fewest tokens in a prompt; a chat template may add a few
LONG_PAUSE, LEAST_CHANGE = 3600, 0.05  # s between replicates, and their change, that give a warning
BY_AGE = ("output_throughput", "e2el_p50")
FEWEST_IN_ORDER, ENOUGH_IN_ORDER = 5, 20  # launches whose order is tested, and that show more than a strong trend
SMALL_SPREAD = 0.01  # standard deviation of the launches' logarithms, up to which their order is ignored
CHANCE, SHUFFLES = 0.025, 2000  # chance of a false alarm about a quantity, from this many permutations of the launches
MOST_NAMED = 3  # maximum points named in a sentence
OF_FIGURES = ("few-requests", "few-steady-requests")  # about trials' columns that the point may lack


def result_warnings(run: Run, layout: Layout) -> list[ResultWarning]:
    """Return every warning about a run, the most serious first: one per trial, point or run that a check doubts."""
    warnings = [
        replace(warning, points=(point,))
        for point, alike in zip(layout.placed(run.ok)["point"], warnings_of_trials(run.ok), strict=True)
        for warning in alike
        if warning.code not in OF_FIGURES or _has_some(layout.points, point, warning.kind.quantities)
    ]
    for check in CHECKS:
        warnings += [ResultWarning(check.kind, *evidence) for evidence in check.function(run, layout)]
    order = {severity: index for index, severity in enumerate(Severity)}
    return sorted(warnings, key=lambda warning: order[warning.kind.severity])


def _has_some(points: pd.DataFrame, point: int, columns: Iterable[str]) -> bool:
    """Return whether a point has a value in one of these columns; True if none was measured at all."""
    measured = [column for column in columns if column in points]
    return not measured or bool(points.loc[point, measured].notna().any())


def grouped(warnings: Iterable[ResultWarning]) -> list[ResultWarning]:
    """Merge the warnings of each code into one, with the worst values and all trials and points, worst first."""
    by_code: dict[str, list[ResultWarning]] = {}
    for warning in warnings:
        by_code.setdefault(warning.code, []).append(warning)
    groups = []
    for alike in by_code.values():
        kind = alike[0].kind
        alike.sort(key=lambda warning: warning.figure, reverse=not kind.lowest_is_worst)
        trials = dict.fromkeys(trial for warning in alike for trial in warning.trials)
        points = dict.fromkeys(point for warning in alike for point in warning.points)
        groups.append(ResultWarning(kind, alike[0].figure, alike[0].message, tuple(trials), tuple(points)))
    return groups


def by_point(warnings: Iterable[ResultWarning]) -> dict[int, list[ResultWarning]]:
    """Return a point's position in the summary -> the warnings about it and its trials, one per code."""
    concerned: dict[int, list[ResultWarning]] = {}
    for warning in warnings:
        for point in warning.points:
            concerned.setdefault(point, []).append(warning)
    return {point: grouped(alike) for point, alike in concerned.items()}


def scope(warning: ResultWarning, layout: Layout) -> str:
    """Name the points concerned, e.g. `4 of 12 points of vllm; the worst: vllm, qa`; empty for the whole run."""
    if not warning.points:
        return ""
    with_result = layout.points[layout.points["n"] > 0]
    points = layout.points.iloc[list(warning.points)]
    names = [layout.describe(point) for _, point in points.head(MOST_NAMED).iterrows()]
    if len(points) == len(with_result):
        return "all points" if len(points) > 1 else names[0]
    share = f"{len(points):,} of {len(with_result):,} points"
    if len(points) <= MOST_NAMED:
        return f"{share}: {'; '.join(names)}"
    lines = points["line"].unique()
    some = f" of {listed(list(lines))}" if len(lines) < with_result["line"].nunique() else ""
    return f"{share}{some}; the worst: {names[0]}"


# Points --------------------------------------------------------------------------------------------------------------


def single_replicate(run: Run, layout: Layout) -> Iterator[Evidence]:
    planned = _planned_replicates(run, layout)
    for point in layout.points.index[(layout.points["n"] == 1) & (planned == 1)]:
        yield Evidence(1, "one replicate, no interval", points=(point,))


def missing_replicates(run: Run, layout: Layout) -> Iterator[Evidence]:
    planned, counts = _planned_replicates(run, layout), layout.points["n"]
    dropped = dropped_trials(run, layout)["point"].value_counts()
    planned = planned.sub(dropped, fill_value=0).reindex(planned.index).astype(int)
    for point in layout.points.index[(counts > 0) & (counts < planned)]:
        n, total = counts[point], planned[point]
        yield Evidence(n / total, f"{n} of {total} replicates have a result", points=(point,))


def unpooled_statistics(run: Run, layout: Layout) -> Iterator[Evidence]:
    measured = layout.placed(run.ok[run.ok["attempt"].notna()])  # imported rows never had requests
    unpooled = layout.points["unpooled"]
    for point in unpooled.index[unpooled.ne("") & unpooled.index.isin(measured["point"])]:
        count_of = len(unpooled[point].split(", "))
        yield Evidence(count_of, f"requests cannot be read: {count_of} columns are means over trials", points=(point,))


def replicates_apart(run: Run, layout: Layout) -> Iterator[Evidence]:
    placed = layout.placed(run.ok).dropna(subset=["started_at"])
    placed = placed.assign(began=pd.to_datetime(placed["started_at"])).sort_values("began", kind="stable")
    for point, trials in placed.groupby("point"):
        pauses = trials["began"].diff().dt.total_seconds().fillna(0).to_numpy(np.float64)
        at = int(pauses.argmax())
        columns = [name for name in BY_AGE if pauses[at] > LONG_PAUSE and trials[name].gt(0).all()]
        figures = {name: np.log(trials[name].to_numpy(np.float64)) for name in columns}
        changes = {name: _change(logs[:at], logs[at:]) for name, logs in figures.items()}
        largest = max(changes, key=lambda name: abs(changes[name]), default="")
        if labelled := labelled_column(largest) if changes.get(largest) else None:
            later = f"{math.expm1(changes[largest]):+.0%} in {labelled.in_sentence}"
            message = f"replicates measured {duration_text(float(pauses[at]))} apart differ: the later have {later}"
            yield Evidence(abs(changes[largest]), message, points=(int(str(point)),))


def _change(before: FloatArray, after: FloatArray) -> float:
    """Return the difference between the means of two groups of logarithms; 0 if it is small or within the spread."""
    difference, freedom = float(after.mean() - before.mean()), len(before) + len(after) - 2
    least = WIDE  # each group is one replicate
    if freedom:
        squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (before, after))
        error = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
        least = max(LEAST_CHANGE, float(t(freedom)) * error)
    return difference if abs(difference) > least else 0.0


def launch_order(run: Run, layout: Layout) -> Iterator[Evidence]:
    launched = layout.placed(run.ok).dropna(subset=["launch", "started_at"])
    for column in (name for name in BY_AGE if name in launched):
        trials = launched[launched[column] > 0]
        logs = trials[column].astype("float64").map(math.log)
        trials = trials.assign(log=logs - logs.groupby(trials["point"]).transform("mean"))
        by_launch = trials.groupby(["line", "launch"]).agg({"log": "mean", "started_at": "min"})
        ordered = by_launch.sort_values("started_at", kind="stable")["log"].groupby(level="line")
        series = {line: each.to_numpy(np.float64) for line, each in ordered if len(each) >= FEWEST_IN_ORDER}
        series = {line: launches for line, launches in series.items() if launches.std() > SMALL_SPREAD}
        if series and (resemblance := order_resemblance([*series.values()])) is not None:
            message = f"successive launches resemble each other (correlation {resemblance:.2f})"
            points = trials.loc[trials["line"].isin(series.keys()), "point"]
            yield Evidence(resemblance, message, points=tuple(points.unique()))
            return


def order_resemblance(series: Sequence[FloatArray]) -> float | None:
    """Return the mean correlation of successive launches; None if their order may be chance.

    The launches are permuted, all series alike, since launches of a replicate share what the machine does then.
    """
    draws = np.random.default_rng(0).random((SHUFFLES + 1, max(map(len, series))))
    draws[0] = np.arange(draws.shape[1])  # as they were
    correlations = np.zeros(len(draws))
    for launches in series:
        shuffled = (launches - launches.mean())[draws[:, : len(launches)].argsort(axis=1)]
        correlations += (shuffled[:, 1:] * shuffled[:, :-1]).sum(axis=1) / (shuffled[0] ** 2).sum() / len(series)
    by_chance = float((correlations >= correlations[0] - 1e-12).mean())
    return float(correlations[0]) if by_chance <= CHANCE else None


def few_launches(run: Run, layout: Layout) -> Iterator[Evidence]:
    standings = [layout.points[name] for name in _derived(layout, "standing")]
    best = [each.index[each == Standing.BEST] for each in standings]
    launched = layout.placed(run.ok[run.ok["launch"].notna()])
    counts = launched[launched["point"].isin(np.concatenate(best) if best else [])].groupby("point")["launch"].nunique()
    if len(counts) and 2 <= counts.min() < ENOUGH_IN_ORDER:
        shown = "show only a strong" if counts.min() >= FEWEST_IN_ORDER else "hardly show a"
        message = f"{counts.min()} launches of each {shown} trend between launches, or an odd one in five"
        yield Evidence(float(counts.min()), message)


def shared_launches(run: Run, layout: Layout) -> Iterator[Evidence]:
    standings = _derived(layout, "standing")
    compared = layout.points.index[layout.points[standings].notna().any(axis="columns")]
    launched = layout.placed(run.ok[run.ok["launch"].notna()])
    counts = launched.groupby("point")[["launch", "replicate"]].nunique()
    for point in counts.index[(counts["launch"] < counts["replicate"]) & counts.index.isin(compared)]:
        launches, replicates = counts.loc[point]
        message = f"{replicates} replicates on {count(int(launches), 'launch')}: the comparison is a tie"
        yield Evidence(launches / replicates, message, points=(int(point),))


def _derived(layout: Layout, name: str) -> list[str]:
    """Return the names of the points' columns of this kind, for the headline columns."""
    return [column for column in (f"{headline}_{name}" for headline in HEADLINE) if column in layout.points]


def _planned_replicates(run: Run, layout: Layout) -> "pd.Series[int]":
    planned = layout.points["planned"]
    if "accelerator" in layout.points:  # replicates ran on different GPUs
        planned = planned.clip(lower=int(run.experiment.get("replicates") or 1))
    return planned


def wide_interval(run: Run, layout: Layout) -> Iterator[Evidence]:
    points = layout.points
    if "output_throughput" not in points:
        return
    low, high = points["output_throughput_ci_low"], points["output_throughput_ci_high"]
    half = (high - low) / 2 / points["output_throughput"]  # as shown in the tables
    by_launches = points.get("output_throughput_by_launches", points["n"].lt(0))
    for point in half.index[half > WIDE]:
        source = ", from the launches' values" if by_launches[point] else ""
        text = f"throughput known only as {number(low[point])}–{number(high[point])} tokens/s{source}"
        yield Evidence(half[point], text, points=(point,))


def unequal_answers(run: Run, layout: Layout) -> Iterator[Evidence]:
    text = "up to {:.1f} times as many tokens as another engine's answers"
    yield from _unequal(_asked(run, layout), "output_tokens", UNEQUAL, text)


def unequal_inputs(run: Run, layout: Layout) -> Iterator[Evidence]:
    text = "up to {:.2f} times as many input tokens as another engine counts"
    yield from _unequal(_asked(run, layout), "input_tokens", UNEQUAL_INPUTS, text)


def unequal_characters(run: Run, layout: Layout) -> Iterator[Evidence]:
    ok = _asked(run, layout)
    if "characters" in ok and ok["recounted_share"].isna().any():
        text = "up to {:.1f} times as many characters per token as another engine's answers"
        yield from _unequal(ok, "characters", UNEQUAL_CHARACTERS, text, ok["output_tokens"])


def _unequal(
    ok: pd.DataFrame, column: str, most: float, text: str, by: "pd.Series[int] | None" = None
) -> Iterator[Evidence]:
    """Yield evidence for questions in which one engine's mean number of tokens is over `most` times another engine's.

    Replicates have different prompts, so only replicates that both engines have are compared. `by` replaces the number
    of answers as the divisor.
    """
    tokens = (ok[column] / (ok["num_requests"] - ok["num_failed"] if by is None else by)).astype("float64")
    shared = [ok["question"], ok["replicate"]]
    lines = ok["line"].where(tokens.notna()).groupby(shared, dropna=False).transform("nunique")
    relative = (tokens / tokens.groupby(shared, dropna=False).transform("mean"))[lines > 1]
    means = relative.groupby([ok["question"], ok["line"]], dropna=False).mean().dropna().groupby(level=0)
    ratios = means.max() / means.min()
    for question, ratio in ratios[ratios > most].items():
        points = tuple(ok.loc[ok["question"] == question, "point"].unique())
        yield Evidence(ratio, text.format(ratio), points=points)


def different_batch_forms(run: Run, layout: Layout) -> Iterator[Evidence]:
    ok = _asked(run, layout)
    lockstep = ok[ok["batch_size"] > 1]  # a batch of one is a single request in either form
    forms = lockstep.groupby("question")["batch_form"].transform("nunique")
    mixed = lockstep[forms > 1]
    if len(mixed):
        names = {"list": "one call with a list of prompts", "streams": "simultaneous requests"}
        each = mixed.groupby("batch_form")["line"].unique()
        forms_of = [f"{names.get(str(form), form)} ({listed(list(lines))})" for form, lines in each.items()]
        yield Evidence(len(each), f"batches sent as {' or '.join(forms_of)}", points=tuple(mixed["point"].unique()))


def _asked(run: Run, layout: Layout) -> pd.DataFrame:
    """Return the placed trials with a result, each with its `question`, which the points of one task share."""
    ok = layout.placed(run.ok)
    question = ok.groupby(["panel", *([layout.x] if layout.x else [])], dropna=False).ngroup()
    return ok.assign(question=question)


# Trials beside each other --------------------------------------------------------------------------------------------


def client_limited(run: Run, layout: Layout) -> Iterator[Evidence]:
    limited = run.trials.loc[run.trials["outcome"] == "client_limited", "trial_id"]
    if len(limited):
        yield Evidence(len(limited), f"the client was the bottleneck in {count(len(limited), 'trial')}", tuple(limited))


def unknown_agreement(run: Run, layout: Layout) -> Iterator[Evidence]:
    ok = _asked(run, layout)
    lines = ok.groupby("line", sort=False)
    unknown = lines["agreement"].max().isna()
    if unknown.any() and not unknown.all():
        reasons = lines["agreement_reference"].first().fillna("no reason given")
        each = listed([f"{line} ({reasons[line]})" for line in unknown.index[unknown]])
        points = ok.loc[ok["line"].isin(unknown.index[unknown]), "point"].unique()
        yield Evidence(int(unknown.sum()), f"agreement unknown for {each}", points=tuple(points))


def different_memory(run: Run, layout: Layout) -> Iterator[Evidence]:
    measured = layout.placed(run.ok).dropna(subset=["memory_peak_bytes", "memory_label"])
    kinds = measured.groupby("memory_label", sort=False)["line"].unique()
    if len(kinds) > 1:
        names = {"gpu": "memory of the GPU", "process": "memory of the processes", "reserved": "memory reserved"}
        each = [f"{names.get(str(kind), kind)} ({listed(list(lines))})" for kind, lines in kinds.items()]
        yield Evidence(len(kinds), f"{len(kinds)} kinds of memory: {'; '.join(each)}")


def endpoints_not_launched(run: Run, layout: Layout) -> Iterator[Evidence]:
    ok = layout.placed(run.ok)
    lines = sorted(ok.loc[of_endpoints(run).reindex(ok.index), "line"].unique())
    if lines and ok["line"].nunique() > 1:
        yield Evidence(len(lines), f"{listed(lines)}: endpoints, launched only once; another launch may differ")


# The run -------------------------------------------------------------------------------------------------------------


def replaced_settings(run: Run, layout: Layout) -> Iterator[Evidence]:
    replaced = run.experiment.get("replaced") or []
    if replaced:
        yield Evidence(len(replaced), f"settings replaced for this machine: {'; '.join(replaced)}")


def trials_not_run(run: Run, layout: Layout) -> Iterator[Evidence]:
    planned = planned_trials(run)
    missing = planned - len(run.trials)
    if missing > 0:
        yield Evidence(missing, f"{missing:,} of {planned:,} planned trials have not run")


def baseline_not_compared(run: Run, layout: Layout) -> Iterator[Evidence]:
    ratios = _derived(layout, "vs_baseline")
    if run.baseline and not layout.points[ratios].notna().to_numpy().any():
        named = ", ".join(f"{key} = {value}" for key, value in run.baseline.items())
        yield Evidence(0, f"nothing could be compared with the baseline ({named})")


def other_rows(run: Run, layout: Layout) -> Iterator[Evidence]:
    if run.others:
        yield Evidence(run.others, f"{count(run.others, 'row')} measured in this folder by other commands, or earlier")


def mixed_code(run: Run, layout: Layout) -> Iterator[Evidence]:
    commits = sorted(run.ok["commit"].dropna().unique())
    if len(commits) > 1:
        yield Evidence(len(commits), f"measured by {len(commits)} versions of this code ({', '.join(commits)})")


def mixed_machines(run: Run, layout: Layout) -> Iterator[Evidence]:
    machines = {_machine(text) for text in run.ok["hardware"].dropna().unique()}
    if len(machines) > 1:
        yield Evidence(len(machines), f"measured on {len(machines)} kinds of machine ({'; '.join(sorted(machines))})")


def mixed_engine_versions(run: Run, layout: Layout) -> Iterator[Evidence]:
    versions = run.ok.dropna(subset="engine_version").groupby("backend")["engine_version"].unique()
    mixed = versions[versions.map(len) > 1].map(sorted)
    each = [f"{backend} in {len(names)} versions ({', '.join(names)})" for backend, names in mixed.items()]
    if each:
        yield Evidence(len(each), f"measured {'; '.join(each)}")


def _machine(text: str) -> str:
    hardware: dict[str, Any] = json.loads(text)
    cores = hardware.get("cores")
    parts = [", ".join(hardware.get("gpus") or []), str(hardware.get("cpu", "")), f"{cores} cores" if cores else ""]
    return ", ".join(part for part in parts if part)


CHECKS = declared_checks(Path(__file__).with_name("warnings.yaml"), globals())

"""Warnings about a run's results: its trials' own, and the ones that only a comparison of trials or points finds.

A check is a function in CHECKS, by `sweep.numbers.warnings.register`: its name is the code, its docstring the meaning.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.headline import HEADLINE
from analysis.load import Run
from analysis.point_names import Layout, listed
from analysis.statistics.pooled import of_endpoints
from analysis.statistics.standings import UNEQUAL, warnings_of_trials
from analysis.summary import planned_trials
from sweep.base.wording import count
from sweep.numbers.warnings import E2EL, TTFT_COLUMNS, Check, Evidence, ResultWarning, Severity, register

WIDE = 0.10  # half an interval over its mean
UNEQUAL_INPUTS = 1.05  # most over fewest tokens in a prompt: a chat template may add a few
MOST_NAMED = 3  # points in a sentence
OF_FIGURES = ("few-requests", "few-steady-requests")  # about figures that the trials have, and their point may not
CHECKS: list[Check] = []
_warning = partial(register, CHECKS, Severity.WARNING)


def result_warnings(run: Run, layout: Layout) -> list[ResultWarning]:
    """Every warning about a run, the most serious first: one for each trial, point or run that a check finds."""
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
    """Return whether a point has one of these figures, unless none of them was measured at all."""
    measured = [column for column in columns if column in points]
    return not measured or bool(points.loc[point, measured].notna().any())


def grouped(warnings: Iterable[ResultWarning]) -> list[ResultWarning]:
    """One warning for each code: the worst of its figures, and all the trials and points, the worst first."""
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
    """Position of a point in the summary -> the warnings about it and its trials, one for each code."""
    concerned: dict[int, list[ResultWarning]] = {}
    for warning in warnings:
        for point in warning.points:
            concerned.setdefault(point, []).append(warning)
    return {point: grouped(alike) for point, alike in concerned.items()}


def scope(warning: ResultWarning, layout: Layout) -> str:
    """The points concerned, e.g. `4 of 12 points of vllm; the worst: vllm, qa`; empty if it is the run."""
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


@_warning("Set replicates=3 or more: the spread between repetitions is unknown.")
def single_replicate(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The point was measured once, as planned, so it has no interval."""
    planned = _planned_replicates(run, layout)
    for point in layout.points.index[(layout.points["n"] == 1) & (planned == 1)]:
        yield Evidence(1, "one replicate, no interval", points=(point,))


@_warning(
    "The mean covers the successful replicates, which may be the faster ones: run the same command again to measure the"
    " rest.",
    lowest_is_worst=True,
)
def missing_replicates(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Some of the point's replicates failed or have not run."""
    planned, counts = _planned_replicates(run, layout), layout.points["n"]
    for point in layout.points.index[(counts > 0) & (counts < planned)]:
        n, total = counts[point], planned[point]
        yield Evidence(n / total, f"{n} of {total} replicates have a result", points=(point,))


@register(
    CHECKS,
    Severity.SEVERE,
    "Restore the requests.parquet of its trials, or measure them again: a mean of percentiles is no percentile.",
)
def unpooled_statistics(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The point's figures are means of its trials' figures, since the requests of a trial cannot be read."""
    measured = layout.placed(run.ok[run.ok["attempt"].notna()])  # imported rows never had requests
    unpooled = layout.points["unpooled"]
    for point in unpooled.index[unpooled.ne("") & unpooled.index.isin(measured["point"])]:
        count_of = len(unpooled[point].split(", "))
        yield Evidence(count_of, f"requests cannot be read: {count_of} figures are means over trials", points=(point,))


@_warning("Set relaunch=per_replicate: two launches of one engine differ, which replicates of one launch do not show.")
def shared_launches(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Replicates that are compared with other engines' were measured on one launch."""
    standings = _derived(layout, "standing")
    compared = layout.points.index[layout.points[standings].notna().any(axis="columns")]
    launched = layout.placed(run.ok[run.ok["launch"].notna()])
    counts = launched.groupby("point")[["launch", "replicate"]].nunique()
    for point in counts.index[(counts["launch"] < counts["replicate"]) & counts.index.isin(compared)]:
        launches, replicates = counts.loc[point]
        message = f"{replicates} replicates on {count(int(launches), 'launch')}: the comparison is a tie"
        yield Evidence(launches / replicates, message, points=(int(point),))


def _derived(layout: Layout, name: str) -> list[str]:
    """The columns of this name that the points have of the headline figures."""
    return [column for column in (f"{headline}_{name}" for headline in HEADLINE) if column in layout.points]


def _planned_replicates(run: Run, layout: Layout) -> "pd.Series[int]":
    planned = layout.points["planned"]
    if "accelerator" in layout.points:  # replicates were spread over different GPUs: the run's number was planned
        planned = planned.clip(lower=int(run.experiment.get("replicates") or 1))
    return planned


@_warning(
    "More replicates narrow it: the second and the third above all, later ones by the root of their number. Where it is"
    " from the launches, more requests a trial give an interval of their own.",
    ("output_throughput",),
)
def wide_interval(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The interval of output throughput is wider than ±10 %."""
    points = layout.points
    if "output_throughput" not in points:
        return
    width_of_all = points["output_throughput_ci_high"] - points["output_throughput_ci_low"]
    half = width_of_all / 2 / points["output_throughput"]  # as the tables show it
    by_launches = points.get("output_throughput_by_launches", points["n"].lt(0))
    for point in half.index[half > WIDE]:
        source = ", from the launches' own figures" if by_launches[point] else ""
        yield Evidence(half[point], f"throughput known to ±{half[point]:.0%} only{source}", points=(point,))


@_warning(
    "Compare tokens/s and TPOT, not durations, requests/s or end-to-end latencies; workload.ignore_eos=true makes the"
    " answers equally long.",
    ("duration", "request_throughput", *E2EL),
)
def unequal_answers(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Engines answered the same requests with different numbers of tokens."""
    text = "up to {:.1f} times as many tokens as another engine's answers"
    yield from _unequal(_asked(run, layout), "output_tokens", UNEQUAL, text)


@_warning(
    "A chat template adds tokens, and another tokenizer counts others: compare engines with the same backend.api, and"
    " set model.tokenizer to the served model's.",
    ("total_throughput", *TTFT_COLUMNS),
)
def unequal_inputs(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Engines counted different numbers of tokens in the same prompts."""
    text = "up to {:.2f} times as many input tokens as another engine counts"
    yield from _unequal(_asked(run, layout), "input_tokens", UNEQUAL_INPUTS, text)


def _unequal(ok: pd.DataFrame, column: str, most: float, text: str) -> Iterator[Evidence]:
    """The questions in which one engine's mean number of tokens is more than `most` times another's.

    A replicate has prompts of its own, so an engine counts by those that another has a result of too.
    """
    tokens = (ok[column] / (ok["num_requests"] - ok["num_failed"])).astype("float64")
    shared = [ok["question"], ok["replicate"]]
    lines = ok["line"].where(tokens.notna()).groupby(shared, dropna=False).transform("nunique")
    relative = (tokens / tokens.groupby(shared, dropna=False).transform("mean"))[lines > 1]
    means = relative.groupby([ok["question"], ok["line"]], dropna=False).mean().dropna().groupby(level=0)
    ratios = means.max() / means.min()
    for question, ratio in ratios[ratios > most].items():
        points = tuple(ok.loc[ok["question"] == question, "point"].unique())
        yield Evidence(ratio, text.format(ratio), points=points)


@register(CHECKS, Severity.INFO, "To send every engine simultaneous requests, set backend.batch_form=streams.")
def different_batch_forms(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Batches of the same size reached some engines as one call with a list, others as simultaneous requests."""
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
    """The trials with a result, placed, and with a `question` that the points of one task share."""
    ok = layout.placed(run.ok)
    question = ok.groupby(["panel", *([layout.x] if layout.x else [])], dropna=False).ngroup()
    return ok.assign(question=question)


# Trials beside each other --------------------------------------------------------------------------------------------


@_warning("These trials have no result: set client.processes higher, give the client its own cores, or lower the load.")
def client_limited(run: Run, layout: Layout) -> Iterator[Evidence]:
    """In some trials the client was the bottleneck."""
    limited = run.trials.loc[run.trials["outcome"] == "client_limited", "trial_id"]
    if len(limited):
        yield Evidence(len(limited), f"the client was the bottleneck in {count(len(limited), 'trial')}", tuple(limited))


@_warning("Compare their speeds with the others' only if you know that their answers are right.", ("agreement",))
def unknown_agreement(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Some engines' answers were compared with the reference's, others' could not be."""
    ok = _asked(run, layout)
    lines = ok.groupby("line", sort=False)
    unknown = lines["agreement"].max().isna()
    if unknown.any() and not unknown.all():
        reasons = lines["agreement_reference"].first().fillna("no reason given")
        each = listed([f"{line} ({reasons[line]})" for line in unknown.index[unknown]])
        points = ok.loc[ok["line"].isin(unknown.index[unknown]), "point"].unique()
        yield Evidence(int(unknown.sum()), f"agreement unknown for {each}", points=tuple(points))


@_warning(
    "Compare memory only between engines with the same kind of figure.",
    ("memory_idle_bytes", "memory_mean_bytes", "memory_peak_bytes"),
)
def different_memory(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The memory figures of the engines are of different kinds."""
    measured = layout.placed(run.ok).dropna(subset=["memory_peak_bytes", "memory_label"])
    kinds = measured.groupby("memory_label", sort=False)["line"].unique()
    if len(kinds) > 1:
        names = {"gpu": "memory of the GPU", "process": "memory of the processes", "reserved": "memory reserved"}
        each = [f"{names.get(str(kind), kind)} ({listed(list(lines))})" for kind, lines in kinds.items()]
        yield Evidence(len(kinds), f"{len(kinds)} kinds of memory: {'; '.join(each)}")


@_warning("To compare launches too, let sweep launch the engines, or restart the endpoints and measure again.")
def endpoints_not_launched(run: Run, layout: Layout) -> Iterator[Evidence]:
    """Endpoints are compared, each on one launch: no interval covers how launches differ."""
    ok = layout.placed(run.ok)
    lines = sorted(ok.loc[of_endpoints(run).reindex(ok.index), "line"].unique())
    if lines and ok["line"].nunique() > 1:
        yield Evidence(len(lines), f"{listed(lines)}: endpoints, launched once by others; another launch may differ")


# The run -------------------------------------------------------------------------------------------------------------


@_warning("Compare engines within this run; do not compare its figures with the study's.")
def replaced_settings(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The study's model, hardware or settings were replaced by what this machine can run."""
    replaced = run.experiment.get("replaced") or []
    if replaced:
        yield Evidence(len(replaced), f"settings replaced for this machine: {'; '.join(replaced)}")


@_warning("Run the same command again: it continues where it stopped.")
def trials_not_run(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The sweep stopped before all planned trials had run."""
    planned = planned_trials(run)
    missing = planned - len(run.trials)
    if missing > 0:
        yield Evidence(missing, f"{missing:,} of {planned:,} planned trials have not run")


@_warning(
    "The baseline needs a result at the same workload and load and on the same kind of GPU: see which of its trials"
    " failed."
)
def baseline_not_compared(run: Run, layout: Layout) -> Iterator[Evidence]:
    """No point could be compared with the baseline."""
    ratios = _derived(layout, "vs_baseline")
    if run.baseline and not layout.points[ratios].notna().to_numpy().any():
        named = ", ".join(f"{key} = {value}" for key, value in run.baseline.items())
        yield Evidence(0, f"nothing could be compared with the baseline ({named})")


@register(
    CHECKS,
    Severity.INFO,
    "sweep report RUN all=true shows them; in_plan in trials.parquet marks the plan's; sweep compare compares them.",
)
def other_rows(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The folder holds results of other plans, or earlier ones of the same trials, which are not shown."""
    if run.others:
        yield Evidence(run.others, f"{count(run.others, 'row')} measured in this folder by other commands, or before")


@_warning("If the difference may matter, measure again with one version of the code.")
def mixed_code(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The trials were measured by several versions of this project's code."""
    commits = sorted(run.ok["commit"].dropna().unique())
    if len(commits) > 1:
        yield Evidence(len(commits), f"measured by {len(commits)} versions of this code ({', '.join(commits)})")


@_warning("Compare engines on the same kind of machine only.")
def mixed_machines(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The trials ran on several kinds of machine."""
    machines = {_machine(text) for text in run.ok["hardware"].dropna().unique()}
    if len(machines) > 1:
        yield Evidence(len(machines), f"measured on {len(machines)} kinds of machine ({'; '.join(sorted(machines))})")


@_warning("If the difference may matter, measure again with one version of the engine.")
def mixed_engine_versions(run: Run, layout: Layout) -> Iterator[Evidence]:
    """The trials of one backend were measured with several versions of the engine."""
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

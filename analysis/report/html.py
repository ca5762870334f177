"""report.html: what was found, how far to believe it, and what was run, in one file that can be mailed."""

import json
import math
from collections.abc import Iterator
from html import escape

import pandas as pd

from analysis import quantities
from analysis.failures import Losses
from analysis.formats import number_formats
from analysis.load import Run
from analysis.plotting.curves import MOST_REPLICATES
from analysis.plotting.layout import Layout, listed
from analysis.plotting.plots import Drawn, draw_all
from analysis.quantities import number
from analysis.report.page import card, definitions, figures, page, section, table
from analysis.report.tables import fits_table, ladder_table, results_table, steady_table
from analysis.report.terminal import times
from analysis.results import Results
from analysis.stats import CONFIDENCE, Estimate
from analysis.summary import best, estimate, planned_trials, write_summary
from analysis.warnings import codes, concerning, grouped, scope
from sweep.disk import run_files

_STATISTICS = (
    "Seconds in the data, milliseconds on labels. p50, p90 and p99 are quantiles over the requests of one trial."
    " A point is one engine, workload and load; its figure is the mean of its trials, with Student's t interval over"
    " them. A ratio to the baseline is one of geometric means, with Welch's t interval of the difference of logarithms."
    " Trials without a result count in no figure."
)

OUTCOMES = {
    "oom_load": "the model did not fit in memory",
    "oom_run": "it ran out of memory under this load",
    "launch_failed": "the engine did not start",
    "launch_timeout": "the engine was not ready in time",
    "engine_crashed": "the engine died",
    "hung": "it was not done in time",
    "client_limited": "the client, not the engine, was the bottleneck",
    "invalid": "too many requests failed, or what ran was not what was planned",
    "unavailable": "this host cannot run it",
    "censored": "a smaller batch of the same deployment already ran out of memory",
    "cancelled": "it was interrupted",
}


def write_all(results: Results) -> None:
    """Write summary.csv, figures/ and report.html of a run."""
    run = results.run
    write_summary(run, results.summary.assign(warnings=codes(results.summary, results.warnings)))
    figures = draw_all(run, results.layout)
    run_files.write_text(run.paths, run.paths.report, html(results, figures))


def html(results: Results, drawn: list[Drawn]) -> str:
    """The report as a document."""
    run, layout, lost = results.run, results.layout, results.losses
    return page(
        f"{run.name}: sweep report",
        [
            f"<header>\n<h1>{escape(run.name)}</h1>\n{_lead(run, layout)}\n</header>",
            f'<div class="cards">{"".join(_cards(results))}</div>',
            section("Warnings", *_warnings(results)),
            section("Figures", *figures(drawn), _reading_figures(run, layout)),
            section("Results", *results_table(run, layout)),
            section("Gain per ladder step", *ladder_table(layout)),
            section("Steady state", *steady_table(run, layout)),
            section("Largest batch that fitted in memory", *fits_table(results.fits)),
            section("Trials without a result", *_failures(lost)),
            section("What was run", _provenance(run, layout), *_versions(run)),
            section("Definitions", *_words(run)),
        ],
    )


def _lead(run: Run, layout: Layout) -> str:
    trials, points = planned_trials(run), len(layout.points)
    points = max(points, trials // int(run.experiment.get("replicates") or trials or 1))
    parts = [
        f"{len(run.ok)} of {trials} trials and {layout.points['n'].gt(0).sum()} of {points} points have a result",
        ", ".join(sorted(run.trials["model"].dropna().unique())),
        ", ".join(sorted(run.ok["accelerator"].dropna().unique())),
        _when(run),
    ]
    return f'<p class="lead">{escape(" · ".join(part for part in parts if part))}</p>'


def _when(run: Run) -> str:
    begin, end = run.trials["started_at"].dropna(), run.trials["ended_at"].dropna()
    if begin.empty or end.empty:
        return ""
    return f"{begin.min()[:16]} to {end.max()[:16]} UTC".replace("T", " ", 2)


# What to see first ---------------------------------------------------------------------------------------------------


def _warnings(results: Results) -> Iterator[str]:
    warnings = grouped(results.warnings)
    yield '<ul class="doubts">' * bool(warnings)
    for warning in warnings:
        place = scope(warning, results.layout)
        yield (
            f'<li class="{warning.kind.severity}" id="warning-{warning.code}"><b>{warning.code}</b>:'
            f" {escape(warning.message)}{escape(f' [{place}]' if place else '')}. {escape(warning.kind.remedy)}</li>"
        )
    yield "</ul>" * bool(warnings)


def _cards(results: Results) -> Iterator[str]:
    for found in best(results.points):
        of = found.quantity
        warnings = [warning.message for warning in concerning(results.warnings_at(found.point), of.column)]
        told = [results.layout.describe(found.point), _interval(found.estimate, of.scale), *warnings]
        yield card(f"Best {of.in_sentence}", of.shown(found.estimate.value), of.unit, list(dict.fromkeys(told)))
    yield from _gains(results)


def _gains(results: Results) -> Iterator[str]:
    """By how much the baseline was beaten, if it was."""
    layout = results.layout
    for column, label, sign in (
        ("output_throughput", "Largest gain in throughput", 1),
        ("ttft_p50", "Largest cut of TTFT p50", -1),
    ):
        name = f"{column}_vs_baseline"
        if name not in layout.points or not layout.points[name].notna().any():
            continue
        point = layout.points.iloc[int((sign * layout.points[name]).argmax())]
        ratio = Estimate(point[name], point[f"{name}_ci_low"], point[f"{name}_ci_high"], estimate(point, column).n)
        warnings = [warning.message for warning in concerning(results.warnings_at(point), column)]
        told = list(dict.fromkeys([layout.describe(point), _verdict(ratio), *warnings]))
        if sign * ratio.value > sign:
            yield card(label, times(ratio.value), "of baseline", told)
        else:
            yield card(label, "none", "", [f"No engine beat the baseline. Closest, at {times(ratio.value)}:", *told])


def _interval(of: Estimate, scale: float = 1.0) -> str:
    if math.isnan(of.low):
        return "one replicate, no interval"
    return (
        f"{CONFIDENCE:.0%} interval {number(max(of.low, 0) * scale)} to {number(of.high * scale)}, n\u00a0=\u00a0{of.n}"
    )


def _verdict(ratio: Estimate) -> str:
    """The interval of a ratio, and in words whether it leaves room for no difference; its n is the point's."""
    if math.isnan(ratio.low) and ratio.n > 1:
        return "one replicate of the baseline, no interval"
    told = _interval(ratio)
    return f"{told}: may be no difference" if ratio.low <= 1 <= ratio.high else told


def _reading_figures(run: Run, layout: Layout) -> str:
    lost = " A cross is a point without a result." if (layout.points["n"] == 0).any() else ""
    if len(layout.distinct) < len(layout.lines):
        lost += (
            f" Of {len(layout.lines):,} lines {len(layout.distinct)} have a colour: those of the best figures, of the"
            " baseline, and others evenly from the plan. The rest are grey, means alone; where lines are rows, and in"
            " the memory over time, they are left out. All are in summary.csv."
        )
    if len(layout.drawn_panels) < len(layout.panels):
        lost += f" The first {len(layout.drawn_panels)} of {len(layout.panels):,} panels are drawn."
    if len(layout.drawn(run.ok)) > MOST_REPLICATES:
        lost += f" There are more than {MOST_REPLICATES:,} replicates: only their intervals are drawn."
    return (
        '<p class="note">Lines are means over replicates, small dots the replicates, whiskers the'
        f" {CONFIDENCE:.0%} interval of the mean (cut where they leave the panel).{lost}"
        " The same figures are in figures/ as SVG and PNG.</p>"
    )


def _failures(lost: Losses) -> Iterator[str]:
    if not lost.trials:
        return
    rows = [
        [
            escape(loss.line),
            f'<span class="bad">{escape(loss.outcome)}</span>',
            str(loss.trials),
            escape(loss.where),
            escape(loss.reason),
        ]
        for loss in lost.shown
    ]
    yield table(
        ["engine", "outcome", "trials", "where", "reason"], rows, classes=["text", "text", "", "text wide", "text wide"]
    )
    if lost.left_out:
        yield f'<p class="note">{escape(lost.left_out)}</p>'
    for loss in lost.shown:
        if loss.log_tail:
            place = f" ({escape(loss.log)})" if loss.log else ""
            title = f"{escape(loss.line)}, {escape(loss.outcome)}: end of the engine's log{place}"
            yield f"<details><summary>{title}</summary><pre>{escape(loss.log_tail)}</pre></details>"


# What was run --------------------------------------------------------------------------------------------------------


def _provenance(run: Run, layout: Layout) -> str:
    ran = run.trials[run.trials["attempt"].notna()]
    profile = run.experiment.get("hardware") or {}
    price = profile.get("price_per_hour")
    entries = {
        "Command": run.experiment.get("command"),
        "Replaced here": "; ".join(run.experiment.get("replaced") or []),
        "Baseline": ", ".join(f"{key} = {value}" for key, value in run.baseline.items()),
        "Engines": ", ".join(_engines(ran)),
        "Models": ", ".join(_distinct(run.trials, "model")),
        "Workloads": ", ".join(_distinct(run.trials, "workload")),
        "Loads": ", ".join(_distinct(run.trials, "load")),
        "Number formats": "; ".join(f"{name}: {listed(lines)}" for name, lines in number_formats(run, layout).items()),
        "Replicates": str(run.trials["replicate"].nunique()),
        "Price": f"{price} USD per hour ({profile.get('price_source') or 'no source given'})"
        if price
        else "none: no cost",
        "Machines": "; ".join(dict.fromkeys(_machine(text) for text in ran["hardware"].dropna())),
        "GPU driver": ", ".join(_distinct(ran, "driver")),
        "Commit of this code": ", ".join(_distinct(ran, "commit")),
        "Results": str(run.paths.out.absolute()),
    }
    return definitions(
        (term, f"<code>{escape(str(said))}</code>" if term == "Command" else escape(str(said)))
        for term, said in entries.items()
        if said
    )


def _distinct(trials: pd.DataFrame, column: str) -> list[str]:
    return [str(value) for value in trials[column].dropna().unique()]


def _engines(trials: pd.DataFrame) -> Iterator[str]:
    for backend, group in trials.groupby("backend", sort=False):
        yield " ".join([str(backend), "/".join(_distinct(group, "engine_version"))]).strip()


def _machine(text: str) -> str:
    hardware = json.loads(text)
    hardware.pop("load_average", None)  # of the moment: it would tell one machine apart from itself
    if "memory_bytes" in hardware:
        hardware["memory"] = f"{number(hardware.pop('memory_bytes') / 2**30)} GiB"
    parts = {key: ", ".join(value) if isinstance(value, list) else value for key, value in hardware.items() if value}
    return ", ".join(f"{key} {value}" for key, value in parts.items())


def _versions(run: Run) -> Iterator[str]:
    """What was installed for each engine, folded away: it is long."""
    for backend, texts in run.trials.groupby("backend", sort=False)["versions"]:
        for text in texts.dropna().unique():
            installed = ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
            title = f"Versions, {escape(str(backend))}"
            yield f"<details><summary>{title}</summary><pre>{escape(installed)}</pre></details>"


# Words ---------------------------------------------------------------------------------------------------------------


def _words(run: Run) -> Iterator[str]:
    """The quantities that have a value, as they are declared, and the outcomes that occurred."""
    available = {name for name in run.ok.columns if run.ok[name].notna().any()}
    formulas = quantities.definitions(available, run.percentiles)
    yield definitions((name, escape(formula)) for name, formula in formulas.items())
    yield f'<p class="note">{escape(_STATISTICS)}</p>'
    if len(run.not_ok):
        yield "<h3>Outcomes</h3>"
        yield definitions((name, escape(OUTCOMES.get(name, ""))) for name in run.not_ok["outcome"].unique())

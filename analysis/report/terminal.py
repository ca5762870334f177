"""Shows a run in the terminal: one screen with the answer and, on request, all details."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.answers.capacity import of_capacities
from analysis.answers.deciding import answers
from analysis.answers.optimum import leading_sentence
from analysis.answers.output import lines as answer_lines
from analysis.answers.screen import Screen, dropped_text, of_texts
from analysis.answers.sentences import BY_LAUNCHES, advantage, range_text, tie_advice
from analysis.answers.task_answer import TaskAnswer
from analysis.explain.design import Ladder, Unexplained, designs
from analysis.failures import Loss
from analysis.point_names import listed
from analysis.report.models import models_table
from analysis.report.tables import MAYBE, OF_STEADY, best_headroom, deciding_table, everything_table, spread_table
from analysis.results import RunResults
from analysis.statistics.ratios import is_baseline
from analysis.summary import planned_trials
from analysis.table import KEY, NONE, Cell, Line, OutputPart, Table, view
from analysis.warnings import MOST_NAMED, grouped, scope
from sweep.base.records import UNMEASURED
from sweep.base.wording import count, duration_text
from sweep.disk.run_files import all_claim_lines
from sweep.numbers.warnings import Severity

STYLES = {Severity.SEVERE: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
LEGENDS = {
    "–": "(a–b): 95% interval of these launches; for agreement and quality, of the comparison with the reference",
    BY_LAUNCHES: f"{BY_LAUNCHES} from the launches' values, since the requests are too few or too dependent",
    OF_STEADY: f"{OF_STEADY} steady state: the whole run's value, including start and drain, differs by more than 10%",
    MAYBE: f"{MAYBE} may be a tie: the interval includes 1 or is missing",
}
"""The meanings of the marks in cells."""
MARK_MEANINGS = {
    "–": "(a–b): 95% interval",
    BY_LAUNCHES: f"{BY_LAUNCHES} of the launches' values",
    OF_STEADY: f"{OF_STEADY} steady state",
    MAYBE: f"{MAYBE} may be a tie",
}
"""Their meanings in short, for one line."""
UNCONFIRMED = ("interval", "drift", "refused")  # statuses of claims
ONE_LINE = 80  # columns of a terminal in which a warning that names its points takes one line


def screen_of(results: RunResults, answered: Sequence[TaskAnswer] | None = None) -> Screen:
    """Return a run on one screen: each task's winner, the values that decide, warnings, and where to read more."""
    answered = answers([results]) if answered is None else answered
    searches = results.questions or results.claims
    asks_capacity = "capacity" in [answer.criterion.quantity.column for answer in answered]
    is_grid = len(results.claims) > 1 and asks_capacity  # within another SLO the probes are the answer
    points: Table[Any] = of_capacities(results) if is_grid else deciding_table(results)
    log = next((loss.log for loss in _worst_first(results)), None)
    order: list[int] = []
    if not is_grid and "ladder_parent" not in results.points:
        ranks = {row.point: rank for answer in answered for rank, row in enumerate(answer.configurations)}
        order = sorted(range(len(points.rows)), key=lambda row: ranks.get(points.rows[row].name, len(ranks)))
    return Screen(
        heading=run_heading(results),
        points=of_texts(points),
        ranks=order,
        winners=of_texts(winners_table(results, answered)),
        models=of_texts(models_table(results) or Table((), ())),
        doubts=list(_doubts(results, answered, [] if results.questions or not is_grid else [*results.claims.values()])),
        log=Path(log).relative_to(results.run.paths.out).as_posix() if log else "",
        dropped=results.losses.dropped,
        answer=leading_sentence(results, answered),
        with_slo="ttft_p50" not in results.points or any(answer.criterion.bounds for answer in answered),
        is_explained=_is_explained(results),
        claims=all_claim_lines(searches) if len(searches) == 1 else (),  # as the run ended
        others=results.run.others,
        advice=tie_advice(answered),
        marks=MARK_MEANINGS | ({"–": "a–b: interval of these launches"} if is_grid else {}),
        place=str(results.run.place),
    )


def run_heading(results: RunResults) -> str:
    """Return a line with the run, its model and machine, the trials with a result, date and duration."""
    run = results.run
    begin, end = (pd.to_datetime(run.trials[name].dropna()) for name in ("started_at", "ended_at"))
    parts = [
        run.name,
        listed(sorted(run.trials["model"].dropna().unique())),
        listed([name.partition(" (")[0] for name in results.machines]),
        f"{len(run.ok)} of {planned_trials(run)} trials ok",
        f"{duration_text((end.max() - begin.min()).total_seconds())} on {begin.min():%Y-%m-%d}"
        if len(begin) and len(end)
        else "",
    ]
    return "  ".join(filter(None, parts))


def winners_table(results: RunResults, answered: Sequence[TaskAnswer]) -> Table[TaskAnswer]:
    """Return the winner of each task, its lead, and how certain it is. Tasks with nothing to compare get no row."""
    run, points = results.run, results.points
    baseline = set(points.loc[is_baseline(points, run.baseline), "line"])
    adjectives = list(dict.fromkeys(answer.criterion.adjective for answer in answered))
    units = list(dict.fromkeys(answer.criterion.quantity.unit for answer in answered))

    def figure(answer: TaskAnswer) -> str:
        if answer.best is None:
            return NONE
        quantity, ends = answer.criterion.quantity, range_text(answer.best.figure, answer.criterion.quantity)
        unit = f" {quantity.unit}" if len(units) > 1 else ""
        return quantity.shown(answer.best.figure.value) + unit + (f" ({ends})" if ends else "")

    def versus(answer: TaskAnswer) -> str:
        rivals = [each for each in answer.configurations if each.name in baseline and each is not answer.best]
        lead_over_it = rivals[0].ratio if rivals and answer.best else math.nan
        return NONE if math.isnan(lead_over_it) else advantage(answer, rivals[0]).partition(" ")[0]

    columns = [
        view("task", lambda answer: answer.criterion.title, **KEY),
        view(adjectives[0] if len(adjectives) == 1 else "best", _winner, **KEY),
        view("lead", _lead),
        view("value", figure, units[0] if len(units) == 1 else ""),
        *([view("headroom", best_headroom)] if any(answer.criterion.bounds for answer in answered) else []),
        view(f"× {listed(sorted(baseline))}", versus),
    ]
    compared = [answer for answer in answered if len(answer.configurations) > 1]
    if all(len(answer.configurations) == 2 for answer in compared):
        columns.pop()  # the runner-up is the baseline
    return Table(columns, compared if len(answered) > 1 else [])  # a sentence is enough for one task


def _winner(answer: TaskAnswer) -> Cell:
    if answer.best is None:
        return Cell("none meets the SLO" if answer.judged else "none can be ranked", style="yellow")
    return Cell(answer.best.full_name, style="yellow" if answer.tied else "green")


def _lead(answer: TaskAnswer) -> Cell:
    if answer.tied:
        rivals = answer.tied[0].full_name if len(answer.tied) == 1 else f"{len(answer.tied)} others"
        return Cell("tie", f"with {rivals}", style="yellow")
    return Cell(advantage(answer, answer.meeting[1]).replace(" to ", "–") if answer.decided else NONE)


def _is_explained(results: RunResults) -> bool:
    try:
        every = designs(results.layout, results.run.baseline)
        return any(isinstance(design, Ladder) or len(design.knobs) > 1 for design in every)
    except Unexplained:
        return False


def _worst_first(results: RunResults) -> list[Loss]:
    return sorted(results.losses.shown, key=lambda loss: loss.trials, reverse=True)


def _doubts(
    results: RunResults, answered: Sequence[TaskAnswer], claims: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, int]]:
    """Yield failures and warnings as text, style and maximum number of lines: severe first, then the answers' own."""
    lost = results.losses
    if lost.trials:
        worst = _worst_first(results)[0]
        share = f" ({worst.trials} of them)" if worst.trials < lost.trials else ""
        share += "" if worst.outcome in UNMEASURED else f": {worst.reason}"
        yield f"! {count(lost.trials, 'trial')} without a result: {worst.line}: {worst.outcome}{share}", "red", 2
    if early := sum(claim["status"] in UNCONFIRMED for claim in claims):
        yield f"! {early} of {len(claims)} searches ended early: their capacities are not confirmed", "yellow", 1
    codes = {code for answer in answered for row in answer.configurations for code in row.codes}
    rank = [*Severity].index
    for warning in sorted(grouped(results.warnings), key=lambda w: (rank(w.kind.severity), w.code not in codes)):
        place, _, names = scope(warning, results.layout).partition(": ")
        points, some, _ = place.partition(";")[0].partition(" points")
        text = f"! {warning.message.partition(': ')[0]}"
        named = f"{text} ({names})"
        is_short = names and len(warning.points) <= MOST_NAMED and len(named) <= ONE_LINE
        yield named if is_short else text + (f" ({points}{some})" if place else ""), STYLES[warning.kind.severity], 1


def everything(results: RunResults, answered: Sequence[TaskAnswer] | None = None) -> list[OutputPart]:
    """Return all details: each task's answer, every value, its spread, and all warnings."""
    first, *sentences = answer_lines(answers([results]) if answered is None else answered)
    parts: list[OutputPart] = [Line(first, "bold green"), *map(Line, sentences)]
    if results.points["n"].any():
        table = everything_table(results)
        cells = "".join(map(str, chain.from_iterable(table.body)))
        parts += [table, *(Line(legend, "dim") for mark, legend in LEGENDS.items() if mark in cells)]
        if left_out := table.points - len(table.rows):
            parts.append(Line(f"{left_out:,} more points are in summary.csv", "dim"))
    if models := models_table(results):
        parts.append(models)
    if spread := spread_table(results):
        parts.append(replace(spread, title="Spread between trials of a point"))
    formats = [Line(f"{name}: {listed(lines)}") for name, lines in results.formats.items()]
    parts += [Line("number formats:", "bold"), *formats] if formats else []
    return [*parts, *_fits(results), *_failures(results), *_warnings(results)]


def _fits(results: RunResults) -> Iterator[Line]:
    if results.fits:
        yield Line("largest that fitted in memory:", "bold")
    for fit in results.fits:
        largest = "none" if fit.largest is None else f"{fit.size} {fit.largest:g}"
        yield Line(f"{fit.line}, {fit.task}: {largest} ({fit.detail})")


def _failures(results: RunResults) -> Iterator[Line]:
    lost = results.losses
    if lost.trials:
        yield Line(f"{lost.trials:,} trial{'s have' if lost.trials > 1 else ' has'} no result:", "bold")
    for loss in lost.shown:
        style = "yellow" if loss.outcome in UNMEASURED else "red"
        yield Line(f"{loss.outcome} x{loss.trials} {loss.line}: {loss.reason}  [{loss.where}]", style)
        if loss.log:
            yield Line(f"log: {loss.log}", "dim")
    if lost.left_out:
        yield Line(lost.left_out)
    if lost.dropped:
        yield Line(dropped_text(lost.dropped), "dim")


def _warnings(results: RunResults) -> Iterator[Line]:
    warnings = grouped(results.warnings)
    if warnings:
        yield Line(f"{count(len(warnings), 'warning')}:", "bold")
    for warning in warnings:
        place = scope(warning, results.layout)
        text = f"{warning.code}: {warning.message}" + (f" [{place}]" if place else "")
        yield Line(text, STYLES[warning.kind.severity])
        yield Line(warning.kind.remedy, "dim")

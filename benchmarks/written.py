"""Repeats the studies of coverage, winners and A/A comparisons with the files that a run writes and reads.

    python -m benchmarks.written [--repetitions 200]

The other studies pass arrays to the functions that a summary uses, and would not notice if a run passed different
arrays. Here simulated requests become Records. `summarise` makes the rows of trials from them, and the writers of
`sweep.disk.run_files` write both. What a user gets is judged: `analysis.load` reads the files, the values come from the
summary, the winners from its standings, the alarms from `sweep compare`. The tables are written to
docs/measurements/written.md, between its marks.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.compare import comparisons, side
from analysis.compare.verdicts import Finding
from analysis.load import open_run
from analysis.statistics.contests import Standing, question_columns
from analysis.statistics.estimates import INTERVAL_COLUMNS
from analysis.statistics.intervals import Interval
from analysis.summary import summarise
from benchmarks.coverage import Figures, ours, study
from benchmarks.documents import write_section
from benchmarks.simulated_runs import Runs, records_of, simulate
from benchmarks.winners import DRIFT, FASTER, SPREAD
from sweep.base import code_version
from sweep.base.config import PERCENTILES
from sweep.base.records import PROTOCOL_VERSION, Outcome, Records
from sweep.disk import run_files
from sweep.disk.row import EngineFacts, Identity, Observation, TrialRow, Verdict, percentiles_text
from sweep.numbers import summarise as numbers
from sweep.numbers.steady import steady_window

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "written.md"
MARKS = ("<!-- tables: python -m benchmarks.written -->", "<!-- end of tables -->")
COLUMNS = {"p50": "e2el_p50", "mean": "e2el_mean", "throughput": "request_throughput"}  # by the other study's quantity
COVERED = (("lognormal", 64, 3), ("4 users", 24, 3), ("batches of 8", 24, 3), ("load 0.7", 100, 3))
ENGINES = ((2, 3), (5, 3), (2, 5))  # engines, replicates
LAUNCHES = (3, 5)  # launches of each side of a comparison
REQUESTS = 24  # requests of a trial of engines that are compared


class SimulatedTrial(NamedTuple):
    """The simulated requests of a trial, and the trial's place in its run."""

    backend: str
    workload: str
    replicate: int
    records: Records


def write_run(folder: Path, trials: Iterable[SimulatedTrial]) -> Path:
    """Write the trials as a run does, each on a separate launch. Return the folder."""
    paths, rows = run_files.RunPaths(folder), []
    for number, trial in enumerate(trials):
        row = _row(trial, f"t{number}")
        run_files.write_requests(paths.trial(trial.backend, f"{trial.replicate}", f"t{number}"), trial.records)
        rows.append(row)
    entry = {"kind": "experiment", "name": folder.name, "axes": ["backend", "workload"], "trials": len(rows)}
    run_files.write_plan(paths, [entry])
    run_files.write_trials(paths, rows)
    return folder


def _row(trial: SimulatedTrial, trial_id: str) -> dict[str, object]:
    identity = Identity(
        trial_id=trial_id, deployment_id=trial.backend, attempt=f"{trial.replicate}", experiment="written",
        label=trial_id, backend=trial.backend, model="simulated", workload=trial.workload, load="closed",
        batch_size=None, concurrency=4, rate=None, replicate=trial.replicate, seed=trial.replicate,
        price_per_hour=None, accelerator=None, gpu_count=0, replicas=1, percentiles=percentiles_text(PERCENTILES),
        slo=None, config=json.dumps({"backend": {"name": trial.backend}, "workload": {"name": trial.workload}}),
        settings="{}", digests=None, commit=code_version.commit(), protocol=PROTOCOL_VERSION,
        started_at=code_version.now(),
    )  # fmt: skip
    engine = EngineFacts(
        launch=f"{trial.backend}/{trial.workload}/{trial.replicate}", engine_version=None, dtype=None,
        coarser_format=None, agreement_reference=None, quality_reference=None, versions="{}", hardware="{}",
        driver=None, engine_facts="{}", caches_reset=None, prompt_salt=None, batch_form=None,
    )  # fmt: skip
    measured = numbers.summarise(trial.records, window=steady_window(trial.records), gpu_count=0, fixed_length=True)
    verdict, observation = Verdict(outcome=Outcome.OK), Observation("kernel", "", "")
    return TrialRow(
        identity=identity, verdict=verdict, engine=engine, observation=observation, measured=measured
    ).flat()


# Studies -------------------------------------------------------------------------------------------------------------


def written_figures(runs: Runs) -> Figures:
    """Return the summary's values of simulated replicates, shape (repetitions,). Each repetition is a workload."""
    repetitions, replicates = runs.sent.shape[:2]
    trials = (
        SimulatedTrial("engine", f"{repetition:05}", replicate, records_of(runs.of(repetition, replicate)))
        for repetition in range(repetitions)
        for replicate in range(replicates)
    )
    with tempfile.TemporaryDirectory() as folder:
        points = summarise(open_run(write_run(Path(folder) / "run", trials))).sort_values("workload")
    return {figure: _interval(points, column) for figure, column in COLUMNS.items()}


def _interval(points: pd.DataFrame, column: str) -> Interval:
    names = [column, *(f"{column}_{end}" for end in INTERVAL_COLUMNS)]
    value, low, high, new_low, new_high = (points[name].to_numpy(np.float64) for name in names)
    effective_n = points.get(f"{column}_effective_n", points["requests"]).to_numpy(np.float64)
    by_launches = points.get(f"{column}_by_launches", points["n"].lt(0)).to_numpy(np.bool_)
    return Interval(value, low, high, new_low, new_high, effective_n, by_launches)


def scaled(base: Runs, log_speed: float) -> Records:
    """Return the requests of a trial on an engine that is faster by the factor exp(`log_speed`)."""
    return records_of(Runs(*(values * math.exp(-log_speed) for values in base)))


def winners(engines: int, replicates: int, sweeps: int, seed: int = 1) -> tuple[float, float]:
    """Return the shares of sweeps in which the summary names one of equal engines, and the engine that is FASTER."""
    base = simulate("4 users", 1, REQUESTS, seed).of(0)
    spread = np.random.default_rng([seed, engines, replicates])
    logs = spread.normal(0, SPREAD, (sweeps, engines, replicates)) + spread.normal(0, DRIFT, (sweeps, 1, replicates))
    named = []
    for lead in (0.0, math.log(FASTER)):
        logs[:, 0] += lead
        trials = (
            SimulatedTrial(
                f"engine{engine}", f"{sweep:05}", replicate, scaled(base, float(logs[sweep, engine, replicate]))
            )
            for sweep, engine, replicate in np.ndindex(logs.shape)
        )
        with tempfile.TemporaryDirectory() as folder:
            points = summarise(open_run(write_run(Path(folder) / "run", trials)))
        standings = points.groupby(question_columns(points), dropna=False)["output_throughput_standing"]
        alone = points[standings.transform(lambda each: ~each.eq(Standing.TIED).any())]
        named.append(list(alone.loc[alone["output_throughput_standing"] == Standing.BEST, "backend"]))
    equal, faster = named
    return len(equal) / sweeps, faster.count("engine0") / sweeps


def alarms(launches: int, draws: int, seed: int = 1) -> tuple[float, float]:
    """Return the shares of A/A comparisons that `sweep compare` calls a difference, and of planted changes it finds."""
    base = simulate("4 users", 1, REQUESTS, seed).of(0)
    spread, found = np.random.default_rng([seed, launches]), np.zeros(2)
    for _ in range(draws):
        with tempfile.TemporaryDirectory() as folder:
            sides = []
            for name, lead in (("reference", 0.0), ("same", 0.0), ("faster", math.log(FASTER))):
                logs = lead + spread.normal(0, SPREAD, launches)
                trials = (
                    SimulatedTrial("engine", "w", replicate, scaled(base, log)) for replicate, log in enumerate(logs)
                )
                sides.append(side(str(write_run(Path(folder) / name, trials))))
            same, faster = comparisons(sides, ["output_throughput"])
        found += [same.verdict in (Finding.FASTER, Finding.SLOWER), faster.verdict == Finding.FASTER]
    return float(found[0] / draws), float(found[1] / draws)


# Document ------------------------------------------------------------------------------------------------------------


def tables(repetitions: int) -> Iterator[str]:
    """Yield the lines of the three tables."""
    yield from (
        "",
        f"Measured at commit {(code_version.commit() or 'unknown')[:12]}; {repetitions} repetitions a cell.",
        "",
    )
    yield "| scenario | requests, replicates | interval | figure | shown | covers | shown, from arrays | covers |"
    yield "|---|---|---|---|---|---|---|---|"
    for scenario, n, replicates in COVERED:
        written, arrays = (
            list(study(scenario, [n], [replicates], repetitions, rival_rules=False, figures=figures))
            for figures in (written_figures, ours)
        )
        for cell in written:
            (other,) = (each for each in arrays if each.key == cell.key)
            rates = " | ".join(f"{each.shown:.0%} | {each.coverage:.1%}" for each in (cell, other))
            yield f"| {scenario} | {n} × {replicates} | {cell.rule} | {cell.figure} | {rates} |"
    yield from (
        "",
        "| engines, replicates | of equal engines one is named | one 10% faster is named |",
        "|---|---|---|",
    )
    for engines, count in ENGINES:
        equal, faster = winners(engines, count, repetitions)
        yield f"| {engines} × {count} | {equal:.1%} | {faster:.1%} |"
    yield from ("", "| launches of each side | A/A: called different | 10% faster: found |", "|---|---|---|")
    for count in LAUNCHES:
        alike, planted = alarms(count, repetitions)
        yield f"| {count} | {alike:.1%} | {planted:.1%} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    np.seterr(invalid="ignore", divide="ignore")
    lines = list(tables(options.repetitions))
    print("\n".join(lines))
    write_section(DOCUMENT, MARKS, lines)


if __name__ == "__main__":
    main()

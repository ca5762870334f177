"""Measures false alarms of `sweep compare --fail-if`, and how often it finds a planted slow-down within its own budget.

    python -m benchmarks.compare [--draws 2000]

The launches are a real llama.cpp's, from docs/measurements/compare_launches.csv (paired_launches.py). A pair is two
launches back to back: of one configuration (A/A), or of a planted slow-down and the nearest launch without one.
Comparisons of as many pairs as the command asks for are drawn in whole pairs, with replacement. Without replacement,
half of all pairs would differ less from their mean than fresh pairs do. The command's own functions judge the draws, as
rows that no run wrote (written.py compares runs on disk). The tables also give the power of the same test by its
formula. They are written to docs/measurements/compare.md, between its marks.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from analysis.compare.conditions import condition
from analysis.compare.matching import Match
from analysis.compare.noise import FEWEST_COMPARISONS, MachineNoise
from analysis.compare.output import reach
from analysis.compare.verdicts import PointComparison, point_comparison
from analysis.quantities import compared_column
from analysis.statistics.intervals import CONFIDENCE
from analysis.statistics.power import CHANCES
from benchmarks.documents import markdown_table, publish
from benchmarks.paired_launches import AGAIN, PLANTED, REFERENCE, ROWS, read_rows
from sweep.base import code_version

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "compare.md"
MARKS = ("<!-- tables: python -m benchmarks.compare -->", "<!-- end of tables -->")
PILOTS = (5, 10, 30)  # pilot sizes in pairs, for which a budget is printed
LONGEST_PAUSE = pd.Timedelta(minutes=10)  # longest pause between two launches of one series
SEQUENTIAL = (3, 5, 10)  # launches per side of runs that were measured one after the other
QUANTITY = compared_column("output_throughput", ())
FAIL_IF = condition("output_throughput < -3%")


class Pairs(NamedTuple):
    """Launches, and the launches that they are compared with, in the same order."""

    first: pd.DataFrame
    second: pd.DataFrame


def launches(path: Path) -> pd.DataFrame:
    """Return the measured launches in the form of a run's rows."""
    frame = pd.DataFrame([asdict(row) for row in read_rows(path)])
    launch = frame["block"].astype(str) + "/" + frame["arm"]
    return frame.assign(replicate=frame["block"], seed=frame["block"], launch=launch)


def arm(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the launches of one arm."""
    return frame[frame["arm"] == name].set_index("block")


def pairs(frame: pd.DataFrame, other: str) -> Pairs:
    """Return an arm's launches, each paired with the launch next to it without a slow-down; both by block."""
    second = arm(frame, other)
    unchanged = [REFERENCE] if other == AGAIN else [REFERENCE, AGAIN]
    adjacent = frame[frame["arm"].isin(unchanged)].set_index("block")
    adjacent = adjacent[(adjacent["position"] - second["position"].reindex(adjacent.index)).abs() == 1]
    return Pairs(adjacent, second.loc[adjacent.index])


def drawn(sides: Pairs, random: np.random.Generator, launched: int) -> PointComparison:
    """Return a comparison of this many pairs, drawn with replacement; a repeated pair is a separate replicate."""
    chosen = random.integers(0, len(sides.first), launched)
    numbers = np.arange(launched)
    first, second = (
        side.iloc[chosen].assign(replicate=numbers, seed=numbers, launch=numbers.astype(str)) for side in sides
    )
    return compared(first, second)


def compared(first: pd.DataFrame, second: pd.DataFrame, noise: MachineNoise | None = None) -> PointComparison:
    """Return the command's comparison of two sides."""
    return point_comparison(("reference", "other"), Match("llamacpp", first, second), QUANTITY, noise=noise)


def power(sides: Pairs, launched: int) -> float:
    """Return the probability that this many pairs meet FAIL_IF, if normally distributed with their mean and spread."""
    logs = np.log(sides.second[QUANTITY.column] / sides.first[QUANTITY.column])
    error = logs.std(ddof=1) / np.sqrt(launched)
    errors = error * np.sqrt(special.chdtri(launched - 1, CHANCES) / (launched - 1))
    below = np.minimum(np.log1p(FAIL_IF.change), -special.stdtrit(launched - 1, (1 + CONFIDENCE) / 2) * errors)
    return float(special.ndtr((below - logs.mean()) / error).mean())


def one_after_the_other(
    alike: pd.DataFrame, launched: int, count: int, noise: MachineNoise | None
) -> list[PointComparison]:
    """Return A/A comparisons of runs one after the other: `launched` launches in order, and the next as many."""
    begins = np.random.default_rng(launched).integers(0, len(alike) - 2 * launched + 1, count)
    return [
        compared(alike.iloc[begin : begin + launched], alike.iloc[begin + launched : begin + 2 * launched], noise)
        for begin in begins
    ]


def alarms(comparisons: Sequence[PointComparison]) -> str:
    """Return the number and share of comparisons that would fail a build."""
    failed = sum(FAIL_IF.met(each) for each in comparisons)
    return f"{failed} ({failed / len(comparisons):.1%})"


def table_of_arms(frame: pd.DataFrame) -> list[str]:
    """Return the table of what was measured for each arm."""
    headings = "arm | launches | stopped for | median, tokens/s | pairs | they differ by | ratio | 95% interval"
    table = []
    for name in (REFERENCE, AGAIN, *PLANTED):
        rows = arm(frame, name)
        of_pairs = ["—"] * 4
        if name != REFERENCE:
            sides = pairs(frame, name)
            each = compared(*sides)
            deviation = np.log(sides.second[QUANTITY.column] / sides.first[QUANTITY.column]).std(ddof=1)
            of_pairs = [str(each.units), f"{deviation:.1%}", f"{each.ratio:.3f}", f"{each.low:.3f} to {each.high:.3f}"]
        median = rows["output_throughput"].median()
        table.append([name, len(rows), f"{rows['stopped_share'].mean():.1%}", f"{median:.1f}", *of_pairs])
    return markdown_table(headings, table)


def table_of_pairs(frame: pd.DataFrame, all_pairs: PointComparison, count: int) -> list[str]:
    """Return the alarms in pairs, at the budgets that the command prints for the whole study."""
    headings = f"{count} comparisons, in pairs | launches a side | minutes | fail the build | by the formula"
    table = []
    for name, launched in zip(PLANTED, all_pairs.launches, strict=True):
        for other, title in ((AGAIN, "A/A"), (name, name)):
            sides, random = pairs(frame, other), np.random.default_rng(launched)
            failed = alarms([drawn(sides, random, launched) for _ in range(count)])
            minutes = launched * all_pairs.launch_minutes
            table.append([title, launched, f"{minutes:.1f}", failed, f"{power(sides, launched):.1%}"])
    return markdown_table(headings, table)


def table_of_pilots(frame: pd.DataFrame, count: int) -> list[str]:
    """Return the slow-downs found at the budgets from a few A/A pairs, which estimate the spread less well."""
    headings = f"{count} pilots of A/A pairs | asked for, for 10% | found | asked for, for 20% | found"
    table = []
    alike, slower = pairs(frame, AGAIN), [pairs(frame, name) for name in PLANTED]
    for size in PILOTS:
        random = np.random.default_rng(size)
        budgets = np.array([drawn(alike, random, size).launches for _ in range(count)])
        row = [f"of {size} pairs"]
        for sides, budget in zip(slower, budgets.T, strict=True):
            alarms_met = [launched > 0 and FAIL_IF.met(drawn(sides, random, launched)) for launched in budget]
            row += [
                f"{np.median(budget):.0f} (half of them {np.quantile(budget, 0.25):.0f} to"
                f" {np.quantile(budget, 0.75):.0f})",
                f"{np.mean(alarms_met):.1%}",
            ]
        table.append(row)
    return markdown_table(headings, table)


def last_series(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the launches of one configuration in order, since the last pause between blocks."""
    ordered = frame.sort_values("started_at", kind="stable")
    pauses = pd.to_datetime(ordered["started_at"]).diff() > LONGEST_PAUSE
    series = ordered[pauses.cumsum() == pauses.sum()]
    alike = series[series["arm"].isin([REFERENCE, AGAIN])]
    return alike.assign(replicate=range(len(alike)), seed=range(len(alike)))


def table_of_runs(frame: pd.DataFrame, count: int) -> list[str]:
    """Return the alarms between runs one after the other in a series' second half; the first half gives the noise."""
    headings = f"{count} A/A comparisons, one run after the other | launches a side | fail the build | with `--noise`"
    table = []
    alike = last_series(frame)
    half = len(alike) // 2
    noise = MachineNoise("the first half", [alike.iloc[:half]])
    for launched in SEQUENTIAL:
        if 2 * FEWEST_COMPARISONS * launched > half:
            break
        failed = (alarms(one_after_the_other(alike.iloc[half:], launched, count, each)) for each in (None, noise))
        table.append(["by replicate", launched, *failed])
    return markdown_table(headings, table)


def conditions(frame: pd.DataFrame) -> str:
    """Return when the launches were measured, and the state of the machine."""
    begins, load = frame["started_at"].sort_values(), frame["load_average"]
    series = (pd.to_datetime(begins).diff() > LONGEST_PAUSE).cumsum()
    times = [f"{each.iloc[0][:16]} to {each.iloc[-1][11:16]}" for _, each in begins.groupby(series)]
    return (
        f"{len(frame)} launches in {frame['block'].nunique()} blocks, {' and '.join(times)} UTC; the load"
        f" average was {load.min():.1f} to {load.max():.1f} (median {load.median():.1f}). Judged at commit"
        f" {(code_version.commit() or 'unknown')[:12]}."
    )


def tables(frame: pd.DataFrame, count: int) -> list[str]:
    """Return the tables of the document, and the text above them."""
    all_pairs = compared(*pairs(frame, AGAIN))
    printed = ["What the command prints below the table of all A/A pairs:", ""]
    printed += [f"    {line}" for line in reach([all_pairs])]
    parts = (
        table_of_arms(frame),
        printed,
        table_of_pairs(frame, all_pairs, count),
        table_of_pilots(frame, count // 2),
        table_of_runs(frame, count),
    )
    return [conditions(frame), *(line for part in parts for line in ("", *part))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--launches", type=Path, default=ROWS, help="others than the document's are only printed")
    options = parser.parse_args()
    lines = tables(launches(options.launches), options.draws)
    publish(["", *lines, ""], DOCUMENT if options.launches == ROWS else None, MARKS)


if __name__ == "__main__":
    main()

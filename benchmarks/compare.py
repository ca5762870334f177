"""False alarms of `sweep compare --fail-if`, and planted slow-downs that it finds at the budget that it prints.

    python -m benchmarks.compare [--draws 200]

The launches are those of docs/measurements/compare_launches.csv (paired_launches.py): a real llama.cpp, two launches of
one configuration back to back in every block, and one for each planted slow-down. Comparisons are drawn from them in
whole blocks, of as many launches as the comparison asks for, and judged by the functions that the command uses. The
tables are written to docs/measurements/compare.md, between its marks.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.compare.conditions import condition
from analysis.compare.matching import Match
from analysis.compare.noise import FEWEST_COMPARISONS, MachineNoise
from analysis.compare.output import reach
from analysis.compare.verdicts import PointComparison, point_comparison
from analysis.quantities import compared_column
from benchmarks.documents import write_section
from benchmarks.paired_launches import AGAIN, PLANTED, REFERENCE, ROWS, read_rows
from sweep import provenance

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "compare.md"
MARKS = ("<!-- tables: python -m benchmarks.compare -->", "<!-- end of tables -->")
SEQUENTIAL = (3, 5, 10)  # launches a side of runs measured one after the other
QUANTITY = compared_column("output_throughput", ())
FAIL_IF = condition("output_throughput < -3%")


def launches(path: Path) -> pd.DataFrame:
    """The measured launches as a run's rows have them."""
    frame = pd.DataFrame([asdict(row) for row in read_rows(path)])
    launch = frame["block"].astype(str) + "/" + frame["arm"]
    return frame.assign(replicate=frame["block"], seed=frame["block"], launch=launch)


def arm(frame: pd.DataFrame, name: str, blocks: Iterable[int] | None = None) -> pd.DataFrame:
    """The launches of one arm, of these blocks or all."""
    chosen = frame[frame["arm"] == name].set_index("block")
    return chosen if blocks is None else chosen.loc[list(blocks)]


def compared(first: pd.DataFrame, second: pd.DataFrame, noise: MachineNoise | None = None) -> PointComparison:
    """The command's comparison of two sides."""
    return point_comparison("reference", "other", Match("llamacpp", first, second), QUANTITY, noise=noise)


def in_pairs(frame: pd.DataFrame, other: str, launched: int, count: int) -> list[PointComparison]:
    """Comparisons of an arm with the reference, in whole pairs, which no comparison has twice."""
    random, blocks = np.random.default_rng(launched), arm(frame, other).index
    samples = (random.choice(blocks, launched, replace=False) for _ in range(count))
    return [compared(arm(frame, REFERENCE, each), arm(frame, other, each)) for each in samples]


def one_after_the_other(
    alike: pd.DataFrame, launched: int, count: int, noise: MachineNoise | None
) -> list[PointComparison]:
    """A/A comparisons of runs measured one after the other: so many launches in their order, and the next as many."""
    begins = np.random.default_rng(launched).integers(0, len(alike) - 2 * launched + 1, count)
    return [
        compared(alike.iloc[begin : begin + launched], alike.iloc[begin + launched : begin + 2 * launched], noise)
        for begin in begins
    ]


def alarms(comparisons: Sequence[PointComparison]) -> str:
    """The comparisons by which a build would fail, and their share."""
    failed = sum(FAIL_IF.met(each) for each in comparisons)
    return f"{failed} ({failed / len(comparisons):.1%})"


def table_of_arms(frame: pd.DataFrame) -> Iterator[str]:
    """What was measured of each arm."""
    yield "| arm | launches | stopped for | median, tokens/s | ratio to the reference | 95 % interval |"
    yield "|---|---|---|---|---|---|"
    for name in (REFERENCE, AGAIN, *PLANTED):
        rows, each = arm(frame, name), compared(arm(frame, REFERENCE), arm(frame, name))
        ratio = "— | —" if name == REFERENCE else f"{each.ratio:.3f} | {each.low:.3f} to {each.high:.3f}"
        median = rows["output_throughput"].median()
        yield f"| {name} | {len(rows)} | {rows['stopped_share'].mean():.1%} | {median:.1f} | {ratio} |"


def table_of_pairs(frame: pd.DataFrame, all_pairs: PointComparison, count: int) -> Iterator[str]:
    """Alarms in pairs, at the budgets that the command prints of the whole study."""
    yield f"| {count} comparisons, in pairs | launches a side | minutes | fail the build |"
    yield "|---|---|---|---|"
    for name, launched in zip(PLANTED, all_pairs.launches, strict=True):
        for other, title in ((AGAIN, "A/A"), (name, name)):
            enough = launched <= len(arm(frame, other))
            failed = alarms(in_pairs(frame, other, launched, count)) if enough else "not drawn: too few pairs"
            yield f"| {title} | {launched} | {launched * all_pairs.launch_minutes:.1f} | {failed} |"


def table_of_runs(frame: pd.DataFrame, count: int) -> Iterator[str]:
    """Alarms between runs one after the other, of the second half; the first half is for the noise."""
    yield f"| {count} A/A comparisons, one run after the other | launches a side | fail the build | with `--noise` |"
    yield "|---|---|---|---|"
    alike = frame[frame["arm"].isin([REFERENCE, AGAIN])].sort_values("started_at", kind="stable")
    alike = alike.assign(replicate=range(len(alike)), seed=range(len(alike)))
    half = len(alike) // 2
    noise = MachineNoise("the first half", [alike.iloc[:half]])
    for launched in SEQUENTIAL:
        if 2 * FEWEST_COMPARISONS * launched > half:
            break
        failed = (alarms(one_after_the_other(alike.iloc[half:], launched, count, each)) for each in (None, noise))
        yield f"| Welch's test | {launched} | {' | '.join(failed)} |"


def conditions(frame: pd.DataFrame) -> str:
    """When the launches were made, and the state of the machine."""
    first, last = frame["started_at"].min()[:16], frame["started_at"].max()[:16]
    load = frame["load_average"]
    return (
        f"{len(frame)} launches in {frame['block'].nunique()} blocks, {first} to {last} UTC; the load"
        f" average was {load.min():.1f} to {load.max():.1f} (median {load.median():.1f}). Judged at commit"
        f" {(provenance.commit() or 'unknown')[:12]}."
    )


def tables(frame: pd.DataFrame, count: int) -> list[str]:
    """The tables of the document, and what stands above them."""
    all_pairs = compared(arm(frame, REFERENCE), arm(frame, AGAIN))
    printed = ["What the command prints below the table of all A/A pairs:", ""]
    printed += [f"    {line}" for line in reach([all_pairs])]
    parts = (table_of_arms(frame), printed, table_of_pairs(frame, all_pairs, count), table_of_runs(frame, count))
    return [conditions(frame), *(line for part in parts for line in ("", *part))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--launches", type=Path, default=ROWS, help="others than the document's are only printed")
    options = parser.parse_args()
    lines = tables(launches(options.launches), options.draws)
    print("\n".join(lines))
    if options.launches == ROWS:
        write_section(DOCUMENT, MARKS, ["", *lines, ""])


if __name__ == "__main__":
    main()

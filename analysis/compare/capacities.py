"""Compares the capacities that two runs claim: the ratio of each configuration's claims, with its interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from analysis.compare.output import VERDICT_STYLES
from analysis.compare.sides import Side
from analysis.compare.verdicts import Finding, verdict
from analysis.statistics.intervals import t
from analysis.table import KEY, NONE, Cell, Column, Line, Output, Table, view
from sweep.base.setting_labels import dotted
from sweep.disk.run_files import read_claims

ClaimRecord = Mapping[str, Any]  # a claim, as in capacity.json
Pairs = list[tuple[ClaimRecord, ClaimRecord]]  # of launches
Claims = Mapping[str, ClaimRecord]  # of a run, by point
OF_THESE_LAUNCHES = (
    "The capacities are of these launches. Their ratio is within the interval if both claims are; for a fresh launch "
    "it may differ by more (docs/capacity.md). With replicates, launches are paired, and the interval is of their mean "
    "ratio."
)


class CapacityRatio(NamedTuple):
    """A configuration's capacity on two sides, and their ratio with its interval."""

    reference: str  # the sides, as typed
    other: str
    first: ClaimRecord
    second: ClaimRecord
    verdict: Finding
    reason: str = ""  # why they cannot be compared
    low: float = math.nan
    high: float = math.nan

    @property
    def ratio(self) -> float:
        """The middle of the interval."""
        return math.sqrt(self.low * self.high)


def capacity_ratios(sides: Sequence[Side], margin: float) -> list[CapacityRatio]:
    """Compare each claim of each later side with the first side's claim for the same configuration and task.

    Sides with a selection have no claims, since claims are of whole runs. Two runs with one claim each are compared
    even if the names differ. Raises DamagedFile.
    """
    claims = [{} if side.selected else read_claims(side.run.paths) for side in sides]
    return [
        _compared((sides[0].text, side.text), pairs, margin)
        for side, of_side in zip(sides[1:], claims[1:], strict=True)
        for pairs in _pairs(claims[0], of_side)
    ]


def _pairs(first: Mapping[str, ClaimRecord], second: Mapping[str, ClaimRecord]) -> list[Pairs]:
    """Return the claims of equal points, by point: a pair for each replicate, whose launches ran side by side."""
    partners = {(_identity(claim), claim.get("replicate", 0)): claim for claim in second.values()}
    pairs: dict[str, Pairs] = {}
    for claim in first.values():
        if partner := partners.get((_identity(claim), claim.get("replicate", 0))):
            pairs.setdefault(_identity(claim), []).append((claim, partner))
    if not pairs and len(first) == len(second) == 1:
        return [list(zip(first.values(), second.values(), strict=True))]
    return [*pairs.values()]


def _identity(claim: ClaimRecord) -> str:
    return str([claim["configuration"], claim["asked"], claim["slo"], claim["unit"]])


def _compared(names: tuple[str, str], pairs: Pairs, margin: float) -> CapacityRatio:
    first, second = pairs[0]
    before, after = (dotted(claim["asked"] | {"slo": claim["slo"], "unit": claim["unit"]}) for claim in pairs[0])
    different = [key for key in before | after if before.get(key) != after.get(key)]
    if different:
        return CapacityRatio(*names, first, second, Finding.INCOMPARABLE, f"different {', '.join(different)}")
    if not all(claim["lower"] for pair in pairs for claim in pair):
        return CapacityRatio(*names, first, second, Finding.INCOMPARABLE, "a capacity is unknown")
    ends = [
        (math.log(new["lower"] / (old["upper"] or math.nan)), math.log((new["upper"] or math.nan) / old["lower"]))
        for old, new in pairs
    ]
    low, high = map(math.exp, ends[0] if len(pairs) == 1 else _of_launches([sum(pair) / 2 for pair in ends]))
    finding = Finding.UNDECIDED if math.isnan(high) else verdict(low, high, margin, "higher")
    return CapacityRatio(*names, first, second, finding, "", low, high)


def _of_launches(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean of log ratios, one for each pair of launches."""
    spread = statistics.stdev(ratios) / math.sqrt(len(ratios))
    margin = float(t(len(ratios) - 1)) * spread
    return statistics.fmean(ratios) - margin, statistics.fmean(ratios) + margin


def _claimed(claim: ClaimRecord) -> str:
    return str(claim["lines"][0]).partition(":")[2].strip()


def _ratio_with_ends(each: CapacityRatio) -> Cell:
    if math.isnan(each.ratio):
        return Cell(NONE)
    return Cell(f"{each.ratio:.3f}×", f"{each.low:.3f} to {each.high:.3f}")


def capacity_table(ratios: Sequence[CapacityRatio], margin: float) -> Table[CapacityRatio]:
    """Return the capacities of both sides and their ratios."""

    def words(each: CapacityRatio) -> str:
        return f"equal within {margin:.0%}" if each.verdict is Finding.EQUAL else str(each.verdict)

    def styled(each: CapacityRatio) -> Cell:
        return Cell(words(each), style=VERDICT_STYLES.get(each.verdict, ""))

    columns: list[Column[CapacityRatio]] = [
        Column("reference", "the first RUN, as typed", lambda each: each.reference),
        Column("other", "the run compared with it", lambda each: each.other, **KEY),
        Column("configuration", "engine and varying settings", lambda each: each.second["configuration"], **KEY),
        Column("task", "what was asked", lambda each: each.second["task"], **KEY),
        view("reference's capacity", lambda each: _claimed(each.first), kind="text wide"),
        view("other's capacity", lambda each: _claimed(each.second), kind="text wide"),
        Column("unit", "requests/s or users", lambda each: each.second["unit"]),
        Column("ratio", "middle of the ratio's interval", lambda each: each.ratio, _ratio_with_ends),
        Column("low, high", "interval of the ratio, from the ends of both claims", lambda each: (each.low, each.high)),
        Column("verdict", "better, worse, equal, tie or not comparable", words, styled, kind="text"),
        Column("reason", "why there is no ratio", lambda each: each.reason or NONE, kind="text"),
    ]
    return Table(columns, ratios, "Capacity")


def with_capacities(output: Output, ratios: Sequence[CapacityRatio], margin: float) -> Output:
    """Return the output of `sweep compare` with a table of capacities first; unchanged if there are none."""
    if not ratios:
        return output
    table = capacity_table(ratios, margin)
    parts = [table, Line(OF_THESE_LAUNCHES, "dim"), *output.parts]
    return Output(parts, output.table if output.table.rows else table, {**output.data, "capacities": table.records()})

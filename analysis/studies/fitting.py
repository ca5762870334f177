"""Checks which sizes fit in memory. The evidence is the trials' outcomes, so there is no interval."""

import re
from typing import Literal

import pandas as pd

from analysis.studies.answer import CheckAnswer, FindingCheck, choice_text, lacking
from analysis.studies.ruling import Ruling
from analysis.studies.uncertain import Where, matching_points
from analysis.summary import NOT_RUN

OUT_OF_MEMORY = {"oom_load", "oom_run", "censored"}


class FitsCheck(FindingCheck):
    """The study's size did not fit in memory, and the largest smaller size has a result.

    Only sizes above the largest size with a result are considered, since a failure below it says nothing about memory.
    With `largest`, the next planned size must also have run out of memory; otherwise memory may not be the limit. A
    size is ignored if some of its trials have a result and others ran out of memory.
    """

    kind: Literal["fits"]
    where: Where
    over: str
    lost: float  # the size that did not fit in the study
    largest: float | None = None  # the largest size that fitted, if the study gives it

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = matching_points(points, self.where)
        ran, lost = _sizes(chosen, self.over)
        if not ran:
            return lacking(f"a size at which {choice_text(self.where)} has a result")
        fitted = max(ran)
        if fitted >= self.lost:
            return self._answered(False, fitted)
        following = min((size for size in chosen[self.over] if size > fitted), default=self.lost)
        needed = {self.lost} if self.largest is None else {self.lost, following}
        if not needed <= lost:
            sizes = " and ".join(f"{size:g}" for size in sorted(needed - lost))
            return lacking(f"{choice_text(self.where)} without memory left, or with a result, at {self.over} {sizes}")
        return self._answered(self.largest in (None, fitted), fitted)

    def _answered(self, holds: bool, fitted: float) -> CheckAnswer:
        limit = f"{self.lost:g} does not fit" if self.largest is None else f"{self.largest:g}, not {self.lost:g}"
        return CheckAnswer(
            Ruling.HOLDS if holds else Ruling.FAILS, f"largest that fitted: {fitted:g} (judged by: {limit})"
        )


def _sizes(points: pd.DataFrame, over: str) -> tuple[set[float], set[float]]:
    """Return the sizes with a result at all of their points, and the sizes that ran out of memory at all of them."""
    if over not in points:
        return set(), set()
    # A published row has outcomes only if something did not fit.
    outcomes = points.get("outcomes", pd.Series("ok", points.index)).fillna("ok").astype(str).map(_outcome_names)
    all_ran = outcomes.map(lambda names: "ok" in names and not names & OUT_OF_MEMORY)
    all_lost = outcomes.map(lambda names: bool(names & OUT_OF_MEMORY) and names <= {*OUT_OF_MEMORY, NOT_RUN})
    ran, lost = (answer.groupby(points[over]).all() for answer in (all_ran, all_lost))
    return set(ran.index[ran].astype(float)), set(lost.index[lost].astype(float))


def _outcome_names(outcomes: str) -> set[str]:
    """Return a point's outcomes (e.g. "ok 2, hung 1") without their numbers."""
    return {re.sub(r" \d+$", "", part) for part in outcomes.split(", ")}

"""The base of all checks of a finding, their answers, and the points that an answer needs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.studies.ruling import Ruling
from analysis.studies.uncertain import Where, matching_points
from sweep.base.config import Strict

MOST_MISSING = 3  # of the missing choices


class CheckAnswer(NamedTuple):
    """The result of a check: its ruling on the finding, and the figures behind it."""

    ruling: Ruling
    figures: str
    measured: bool = True  # false: the table lacks the points


class FindingCheck(Strict):
    """The base of all checks."""

    column: str = ""  # the figure that it compares; empty if it goes by outcomes

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        raise NotImplementedError


def lacking(points: str) -> CheckAnswer:
    """Return the answer of a table without these points."""
    return CheckAnswer(Ruling.UNKNOWN, f"needs {points}", measured=False)


def choice_text(where: Mapping[str, Any]) -> str:
    """Return a choice of points as text; where several values will do, they are listed."""
    texts = {key: " or ".join(map(str, value)) if isinstance(value, list) else value for key, value in where.items()}
    return ", ".join(f"{key}={text}" for key, text in texts.items())


def absent(points: pd.DataFrame, among: Sequence[Where]) -> str:
    """Return in words which of several choices have no point here, at most three of them, or an empty text."""
    missing = dict.fromkeys(choice_text(where) for where in among if matching_points(points, where).empty)
    more = [f"{len(missing) - MOST_MISSING} more"] if len(missing) > MOST_MISSING else []
    return "; ".join([*list(missing)[:MOST_MISSING], *more])

"""The base class of all checks of a finding, their answers, and helpers to choose points."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.studies.ruling import Ruling
from analysis.studies.uncertain import Where, matching_points
from sweep.base.config import Strict

MOST_MISSING = 3  # maximum missing choices that an answer lists


class CheckAnswer(NamedTuple):
    """The answer of a check: its ruling on the finding, and the values behind it."""

    ruling: Ruling
    figures: str
    measured: bool = True  # False: the table lacks the points


class FindingCheck(Strict):
    """The base class of all checks."""

    column: str = ""  # the column that the check compares; empty if it uses outcomes

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        raise NotImplementedError


def lacking(points: str) -> CheckAnswer:
    """Return the answer for a table without these points."""
    return CheckAnswer(Ruling.UNKNOWN, f"needs {points}", measured=False)


def choice_text(where: Mapping[str, Any]) -> str:
    """Return a choice of points as text, with alternative values joined by "or"."""
    texts = {key: " or ".join(map(str, value)) if isinstance(value, list) else value for key, value in where.items()}
    return ", ".join(f"{key}={text}" for key, text in texts.items())


def absent(points: pd.DataFrame, among: Sequence[Where]) -> str:
    """Return a text that lists the choices without a point, at most three; empty if every choice has one."""
    missing = dict.fromkeys(choice_text(where) for where in among if matching_points(points, where).empty)
    more = [f"{len(missing) - MOST_MISSING} more"] if len(missing) > MOST_MISSING else []
    return "; ".join([*list(missing)[:MOST_MISSING], *more])
